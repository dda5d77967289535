"""Fifty characters, a small network: the thousand-way problem of the benchmarks, made bounded.

The images and the network are made by ``bench/e2e/glyphs.py --twin``; no fonts are needed here.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
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
    wanted = np.random.default_rng(0).permutation(len(categories))[:6].tolist()
    return SimpleNamespace(model=model, images=root, units=wanted, out=root / "runs")


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
