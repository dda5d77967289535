"""Fifty characters, a small network: the thousand-way problem of the benchmarks, made bounded.

The images and the network are made by ``bench/e2e/glyphs.py --twin``; no fonts are needed here.
"""

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from torch.nn import AdaptiveAvgPool2d, Dropout, Flatten, Linear, Sequential
from torchvision import transforms

import circuitcore
from circuitcore.bundled.network import SmallAlexNet

HERE = Path(__file__).parent
WIDTH, PIXELS = 192, 28
SPLITS = {"extraction_images": 8, "heldout_images": 16}


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """The model, its images as a folder, and the categories drawn to be swept."""
    root = tmp_path_factory.mktemp("glyphs")
    for sheet in sorted(HERE.glob("*/*.png")):
        folder = root / sheet.parent.name / sheet.stem
        folder.mkdir(parents=True)
        row = np.asarray(Image.open(sheet))
        for number in range(row.shape[1] // PIXELS):
            one = row[:, number * PIXELS : (number + 1) * PIXELS]
            Image.fromarray(one).save(folder / f"{number:03d}.png")
    with safe_open(HERE / "network.safetensors", "pt") as file:
        categories = json.loads(file.metadata()["categories"])
        state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    network = SmallAlexNet(len(categories), width=WIDTH).eval()
    network.load_state_dict(state)
    seen = transforms.Compose([
        transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize([0.5], [0.25])
    ])  # fmt: skip
    model = circuitcore.Model.of(network, seen, categories)
    pooled = circuitcore.Model.of(copying(network), seen, categories)
    wanted = np.random.default_rng(0).permutation(len(categories))[:6].tolist()
    return SimpleNamespace(model=model, pooled=pooled, images=root, units=wanted, out=root / "runs")


def copying(network):
    """The same function behind an adaptive pooling that repeats each of 3 x 3 places four times."""
    first, *rest = [deepcopy(step) for step in network.classifier if not isinstance(step, Dropout)]
    wide = Linear(64 * 36, first.out_features)
    copies = first.weight.detach().view(-1, 64, 3, 1, 3, 1) / 4
    wide.weight.data = copies.expand(-1, -1, -1, 2, -1, 2).reshape(first.out_features, -1).clone()
    wide.bias.data = first.bias.detach().clone()
    return Sequential(*network.features, AdaptiveAvgPool2d(6), Flatten(), wide, *rest).eval()


def swept(glyphs, name, units=None, **options):
    return circuitcore.sweep(
        glyphs.model, glyphs.images, categories=units or glyphs.units, out=glyphs.out / name,
        **SPLITS, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(glyphs):
    return swept(glyphs, "screened", screen="on")


def test_every_recognised_category_has_its_ratio(run):
    document = run.document
    assert len(document.categories) == 6
    for category in document.categories:
        unpruned, circuit = category.unpruned, category.circuit
        assert unpruned.extraction.hit > 0.5  # the network recognises each
        assert circuit.heldout.csa_ratio_biased is not None
        low, high = circuit.heldout.csa_ratio_biased_ci95
        assert low <= circuit.heldout.csa_ratio_biased <= high
        assert circuit.extraction.false_alarms <= unpruned.extraction.false_alarms
        for stage in category.stages:
            chosen = stage.levels[stage.chosen]
            assert chosen.hit >= stage.threshold_hits - 1e-9
        assert category.random_masks.masks == 1
        assert category.empty.extraction.false_alarms <= unpruned.extraction.false_alarms
    summary = document.summary
    assert summary.undefined == {} and 0.8 < summary.ratio_of_means < 1.2
    assert 0.2 < summary.mean_pruned < 1


@pytest.mark.parametrize("stop", ["first-crossing", "sparsest-above"])
def test_screening_finds_the_levels_that_running_everything_finds(glyphs, run, stop):
    units = glyphs.units[:3]
    ours = (
        run if stop == "first-crossing" else swept(glyphs, "sparse", units, screen="on", stop=stop)
    )
    whole = swept(glyphs, f"whole-{stop}", units, screen="off", stop=stop)
    for name in whole:
        a, b = ours[name].record, whole[name].record
        for mine, theirs in zip(a.stages, b.stages, strict=True):
            assert mine.levels[mine.chosen].level == theirs.levels[theirs.chosen].level
        assert a.circuit.heldout == b.circuit.heldout
        assert a.cost.fpe_sweep + a.cost.fpe_certify < b.cost.fpe_sweep + b.cost.fpe_certify


def test_circuits_of_characters_beat_their_controls(run):
    """On held-out images a circuit does better than random masks and than the empty circuit."""
    rows = run.controls()
    csa = {
        kind: np.mean([row["heldout_csa"] for row in rows if row["control"] == kind])
        for kind in {row["control"] for row in rows}
    }
    assert csa["circuit"] > csa["random"] + 0.2 and csa["circuit"] > csa["empty"] + 0.2
    pairs = run.document.overlap
    assert pairs.pairs == 15 and pairs.mean_chance < pairs.mean < 1


@pytest.mark.parametrize(
    ("dtype", "screen", "ablate"),
    [
        ("float32", "on", "zero"), ("float32", "off", "zero"), ("float32", "off", "mean"),
        ("bfloat16", "on", "zero"), ("bfloat16", "off", "zero"),
    ],
)  # fmt: skip
def test_a_pooling_that_copies_is_computed_once(glyphs, screen, dtype, ablate):
    """The circuits are those of computing every copy, and so are the figures."""
    found = {
        impl: circuitcore.sweep(
            glyphs.pooled, glyphs.images, categories=glyphs.units[:2], levels=9, screen=screen,
            out=glyphs.out / f"pooled-{impl}-{screen}-{dtype}-{ablate}", impl=impl, dtype=dtype,
            ablate=ablate, **SPLITS,
        )
        for impl in ("auto", "torch")
    }  # fmt: skip
    for name in found["torch"]:
        ours, plain = found["auto"][name].record, found["torch"][name].record
        assert ours.unpruned.heldout.hit == plain.unpruned.heldout.hit
        for a, b in zip(ours.stages, plain.stages, strict=True):
            assert a.levels[a.chosen].level == b.levels[b.chosen].level
        assert ours.circuit.kept_weights == plain.circuit.kept_weights
        assert ours.circuit.heldout.false_alarms == plain.circuit.heldout.false_alarms
        assert ours.circuit.bias == pytest.approx(plain.circuit.bias, abs=1e-4)
        assert ours.cost.multiply_adds < plain.cost.multiply_adds
        if screen == "off" and dtype == "float32":
            fc = ours.stages[0]
            assert fc.planned_multiply_adds == fc.multiply_adds
