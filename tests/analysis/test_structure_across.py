"""Structure across categories against enumerations, scipy and runs made by hand."""

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from command import call
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, spearmanr

import circuitcore as cc
from circuitcore.analysis.across import structure as ours
from circuitcore.analysis.across.hierarchy import WORDNET, hierarchy_of, read, similarity
from circuitcore.bundled import CATEGORIES
from circuitcore.progress import Silent

TREE = """\
# what is worn where
Trouser\tclothes
Bag\tthings
Coat\tclothes
Sandal\tshoes
Sneaker\tshoes
shoes\tthings
clothes\tthings
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Five categories at two levels a stage."""
    folder = tmp_path_factory.mktemp("structure")
    (folder / "tree.tsv").write_text(TREE)
    few = {"levels": "0,0.9", "extraction_images": 5, "heldout_images": 5, "device": "cpu"}
    names = ["Trouser", "Coat", "Sandal", "Sneaker", "Bag"]
    return cc.sweep(categories=names, threshold=0.3, out=folder / "run", **few)


def test_wordnet_has_every_synset_and_its_ancestors():
    parents = read(WORDNET)
    above = {parent for each in parents.values() for parent in each}
    assert above <= parents.keys() and len(parents) == 1860
    assert [name for name, each in parents.items() if not each] == ["n00001740"]  # entity
    assert len(parents.keys() - above) <= 1000
    tench, goldfish, crane = "n01440764", "n01443537", "n03126707"
    found, said = hierarchy_of([tench, goldfish, crane], None)
    assert said == "WordNet 3.0"
    near = similarity(found, [tench, goldfish, crane])
    assert near[0, 1] > 0.8 > 0.5 > near[0, 2] and np.array_equal(near, near.T)
    assert np.array_equal(np.diag(near), np.ones(3))


def test_similarity_is_wu_and_palmers(tmp_path):
    (tmp_path / "tree").write_text(TREE)
    names = ["Sandal", "Sneaker", "Coat", "Bag"]
    near = similarity(read(tmp_path / "tree"), names)
    assert near[0].tolist() == [1, 2 * 2 / 6, 2 * 1 / 6, 2 * 1 / 5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Bag\tx\nx\ty\ny\tx\n", "'x' is its own ancestor|'Bag' is its own ancestor"),
        ("Bag\tx\nBag\ty\n", "line 2: 'Bag' has a line already"),
        ("Coat\tx\n", "no line for Trouser, Sandal, Sneaker and 1 more"),
    ],
)
def test_a_hierarchy_that_is_none_is_refused(text, said, tmp_path, run):
    (tmp_path / "tree.tsv").write_text(text)
    with pytest.raises(cc.InputError, match=said):
        run.structure(hierarchy=tmp_path / "tree.tsv")
    with pytest.raises(cc.InputError, match="cannot be read"):
        run.structure(hierarchy=tmp_path / "none.tsv")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_counts_by_chance_are_those_of_every_case(shares):
    wanted = np.zeros(len(shares) + 1)
    for case in range(2 ** len(shares)):
        yes = [(case >> k) & 1 for k in range(len(shares))]
        wanted[sum(yes)] += np.prod([p if y else 1 - p for p, y in zip(shares, yes, strict=True)])
    assert ours.counts_by_chance(np.array(shares)) == pytest.approx(wanted)


def test_units_are_counted_beside_chance():
    random = np.random.default_rng(0)
    used = random.random((10, 500)) < 0.5
    row = ours.units_row("x", used)
    count = used.sum(0)
    assert row.hubs == (count >= 9).sum() and row.private == (count == 1).sum()
    assert row.unused == (count == 0).sum()
    assert row.hubs_expected == pytest.approx(500 * binom.sf(8, 10, 0.5), rel=0.3)
    assert 0.01 < row.hubs_p <= 1 and 0.01 < row.private_p <= 1
    used[:, :30] = True
    assert ours.units_row("x", used).hubs_p < 1e-6
    used[:, 30:60] = False
    used[0, 30:60] = True
    assert ours.units_row("x", used).private_p < 1e-6


def test_chance_is_as_rarely_low_as_it_says():
    random = np.random.default_rng(1)
    low = 0
    for _ in range(400):
        used = random.random((8, 200)) < random.uniform(0.2, 0.8, 8)[:, None]
        low += ours.units_row("x", used).private_p <= 0.05
    assert low / 400 < 0.09


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_mantel_is_the_share_of_permutations(seed):
    random = np.random.default_rng(seed)
    one, other = (np.triu(random.random((5, 5)), 1) for _ in range(2))
    one, other = one + one.T, other + other.T
    upper = np.triu_indices(5, k=1)
    found, p, null = ours.mantel(one, other, seed)
    assert found == pytest.approx(spearmanr(one[upper], other[upper]).statistic)
    every = [
        spearmanr(one[upper], other[np.ix_(o, o)][upper]).statistic
        for o in map(list, permutations(range(5)))
    ]
    share = np.mean(np.array(every) >= found - 1e-9)
    assert p == pytest.approx(share, abs=0.06)
    assert null.mean() == pytest.approx(np.mean(every), abs=0.05)
    assert ours.mantel(one, one, seed)[0] == pytest.approx(1)
    assert ours.mantel(one, np.ones((5, 5)), seed)[1] == 1


def test_a_run(run):
    tree = run.folder.parent / "tree.tsv"
    found = run.structure(hierarchy=tree, confusions=True)
    assert found.categories == 5
    pairs = run.overlap()
    for row in found.shared:
        values = [p["overlap"] for p in pairs if p["layer"] == row.layer]
        assert (row.mean, row.min) == (pytest.approx(np.mean(values)), min(values))
    masks = {name: run[name].masks for name in run}
    last = run.manifest["model"]["last"]
    assert [row.layer for row in found.units] == [n for n in masks["Bag"] if n != last]
    for row in found.units:
        used = np.stack([m[row.layer].flatten(1).any(1).numpy() for m in masks.values()])
        assert row == ours.units_row(row.layer, used)
    tree, confused = found.agreement
    assert (tree.against, confused.against) == ("hierarchy", "confusions")
    assert confused.categories == 5 and -1 <= confused.spearman <= 1
    assert 0 < tree.p <= 1
    assert found.shared[0].ceiling is None
    run.stability(resamples=2, pool=5)
    assert 0 < run.structure().shared[0].ceiling <= 1 and run.structure().agreement == []


def test_confusions_are_those_of_the_unpruned_network(run, method, example):
    names = list(run)
    units = [run[name].record.index for name in names]
    near = ours._confusions(run.folder, units, Silent(), None, {})
    x = torch.cat([split_of(example, name, units)[0] for name in ("extraction", "heldout")])
    y = torch.cat([split_of(example, name, units)[1] for name in ("extraction", "heldout")])
    with torch.no_grad():
        said = method.run(example.double, x).argmax(1)
    rates = np.array([
        [float((said[y == a] == b).double().mean()) for b in units] for a in units
    ])  # fmt: skip
    assert near == pytest.approx(rates + rates.T)


def split_of(example, name, units):
    """The run's five images of each of its categories, where the reference has 20 or 30."""
    first = example.splits["extraction"]
    kept = [torch.nonzero(first[1] == unit)[:, 0] for unit in units]
    part = slice(0, 5) if name == "extraction" else slice(5, 10)
    places = torch.cat([each[part] for each in kept])
    return first[0][places], first[1][places]


def test_the_command(run, small):
    said = call("structure", run.folder, "--hierarchy", run.folder.parent / "tree.tsv").stdout
    assert "5 circuits" in said and "hubs" in said and "against hierarchy" in said
    assert all(len(line) <= 80 for line in said.splitlines())
    found = json.loads(call("structure", run.folder, "--format", "json").stdout)
    assert found["categories"] == 5 and {"shared", "units", "agreement"} <= found.keys()
    csv = call("structure", run.folder, "--format", "csv").stdout.splitlines()
    assert csv[0].startswith("table,layer,mean") and len(csv) > 10
    refused = call("structure", small.folder, code=3).stderr
    assert "2 circuits; 4 or more are needed" in refused
    assert set(CATEGORIES) > set(run)
