"""Ensembles: ranks against scipy's, sums in whole numbers, the whole against float64 scores."""

import numpy as np
import pytest
import torch
from criteria import scoring_images, sweep_agrees
from scipy.stats import rankdata
from torch import nn

from circuitcore.analysis.score_files import category_scores
from circuitcore.analysis.stability import stability
from circuitcore.errors import UsageError
from circuitcore.network.trace import trace
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.scoring import criteria
from circuitcore.scoring.criteria import check_criterion, scored_by
from circuitcore.scoring.ensemble import doubled_ranks, ensemble, in_order
from circuitcore.scoring.levels import stage_levels

CATEGORY, MEMBERS = 8, "actgrad,snip"


@pytest.fixture(scope="module")
def images(example):
    return scoring_images(example, CATEGORY)


@pytest.fixture(scope="module")
def long_way(example, method, images):
    """Mean normalised ranks in float64, by stage: scores of the method, ranks of scipy."""
    plain = method.score(example.double, images.clone(), CATEGORY)
    snip = method.score(example.double, images.clone(), CATEGORY, "set")
    found = {}
    for stage, names in method.default_stages(example.double).items():
        ranks = []
        for scores in (plain, snip):
            own = method.normalise({name: scores[name] for name in names}, "paper", stage)
            flat = np.concatenate([own[name].reshape(-1).numpy() for name in names])
            ranks.append((rankdata(flat) - 1) / (len(flat) - 1))
        mean, sizes = torch.from_numpy(np.mean(ranks, 0)), [plain[name].numel() for name in names]
        parts = zip(names, mean.split(sizes), strict=True)
        found[stage] = {name: part.view(plain[name].shape) for name, part in parts}
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_are_those_of_scipy(seed):
    """With many ties, -0.0 among them; one value, all equal."""
    random = np.random.default_rng(seed)
    values = random.integers(-4, 5, 999).astype(np.float32) * np.float32(0.1)
    values[::50] = -0.0
    for each in (values, values[:1], np.zeros(7, np.float32)):
        found = doubled_ranks(torch.from_numpy(each)).numpy()
        assert np.array_equal(found, 2 * (rankdata(each) - 1))


def test_order_is_that_of_whole_numbers():
    """Sums that float32 could not tell apart."""
    total = torch.tensor([2**40 + 1, 2**40, 5, 2**40 + 1, 0])
    found = in_order(total)
    assert torch.equal(found[:, None] < found, total[:, None] < total)
    assert found.isfinite().all() and found.min() >= torch.finfo(torch.float32).tiny


def test_mean_ranks_are_exact_and_those_of_float64(example, images, long_way):
    network = trace(example.network)
    options = Options(criterion="ensemble", ensemble=MEMBERS)
    found = scored_by(network, images.float(), CATEGORY, options)
    for stage, expected in long_way.items():
        names = network.layers(stage)
        own = ensemble(network, names, found, CATEGORY, options)
        means, flat = torch.cat(own.means), torch.cat([expected[n].reshape(-1) for n in names])
        apart = (means.double() - flat).abs()
        assert apart.max() <= 1e-3 and apart.mean() <= 1e-5
        assert 0 <= means.min() < 0.5 < means.max() <= 1
        order = torch.cat([each.layer.values for each in own.scores]).argsort(stable=True)
        assert (means[order].diff() >= 0).all()
        levels = stage_levels(network, stage, found, CATEGORY, options)
        plain = stage_levels(network, stage, found, CATEGORY, Options())
        snip = stage_levels(network, stage, found, CATEGORY, Options(criterion="snip"))
        assert levels.pruned == plain.pruned
        assert levels.tied_zero <= min(plain.tied_zero, snip.tied_zero)
        assert stage == "conv" or levels.tied_zero > 0


def test_levels_prune_the_lowest_sums_of_ranks(example, images):
    """Exactly, from the members' own float32 scores: every sum a whole number."""
    from circuitcore.kernels.levels.layer import normalised, raw_scores
    from circuitcore.scoring.scores import layer_scores

    network = trace(example.network)
    options = Options(criterion="ensemble", ensemble="actgrad,weight-magnitude,lrp", levels="5")
    found = scored_by(network, images.float(), CATEGORY, options)
    names, ranks = network.layers("conv"), []
    for member in options.members():
        own, flat = options.member(member), []
        for name in names:
            each = found[name].members.get(member, found[name])
            layer = layer_scores(network, name, each, CATEGORY, own).layer
            flat.append(normalised(raw_scores(layer), layer))
        ranks.append(rankdata(torch.cat(flat).numpy()))
    weights = torch.cat([network.weights[name].abs().flatten() for name in names]).numpy()
    sums = sum((2 * each).astype(np.int64) for each in ranks)
    order = np.lexsort((np.arange(len(sums)), weights, sums))
    levels = stage_levels(network, "conv", found, CATEGORY, options)
    byte = torch.cat([levels.levels[name].flatten() for name in names]).numpy()
    for t, count in enumerate(levels.pruned):
        assert set(order[:count]) == set(np.flatnonzero(byte <= t))


def test_whole_sweep(example, method, long_way):
    expected = {name: each for stage in ("conv", "fc") for name, each in long_way[stage].items()}
    sweep_agrees(
        example, method, CATEGORY, expected, normalised="none", criterion="ensemble",
        ensemble=MEMBERS,
    )  # fmt: skip


def test_scores_and_their_stability(long_way):
    options = Options(criterion="ensemble", ensemble=MEMBERS, scoring_images=2)
    found = category_scores(options, CATEGORY)
    expected = {n: e.numel() for stage in long_way.values() for n, e in stage.items()}
    assert {name: values.numel() for name, values in found.items()} == expected
    rows = stability(options, [CATEGORY], Silent())
    assert [row.stage for row in rows] == ["fc", "conv"]
    assert all(0.2 < row.spearman < 1 for row in rows)


@pytest.mark.parametrize("granularity", ["kernel", "filter"])
def test_coarser_units(granularity, example, images):
    network = trace(example.network)
    options = Options(criterion="ensemble", ensemble="actgrad,lrp", granularity=granularity,
                      levels="0,0.5")  # fmt: skip
    found = scored_by(network, images.float(), CATEGORY, options)
    levels = stage_levels(network, "conv", found, CATEGORY, options)
    assert levels.pruned[1] == pytest.approx(levels.relevant / 2, abs=800)
    kept = levels.kept(1)["features.3"]
    whole = kept.flatten(1 if granularity == "filter" else 2).double().mean(-1)
    assert set(whole.unique().tolist()) <= {0.0, 1.0}


def test_what_is_told_and_refused_before_anything_runs(example, monkeypatch):
    network, told = trace(example.network), []
    options = Options(criterion="ensemble", ensemble="actgrad,lrp")
    check_criterion(network, options, told.append)
    assert not told
    monkeypatch.setattr(criteria, "MANY", network.relevant("fc"))
    check_criterion(network, options, told.append)
    check_criterion(network, Options(), told.append)
    assert len(told) == 1 and "3 times a category" in told[0]
    gates = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 36, 3))
    with pytest.raises(UsageError, match=r"'\w*1\w*' \(sigmoid\)"):
        check_criterion(trace(gates.eval()), options)
