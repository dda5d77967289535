"""What a sweep really does to activations and to costs, recorded from a trained AlexNet.

``python bench/e2e/margins.py`` runs the trained network of ``alexnet.py`` at every fc level, then
at every conv level behind some fc circuits, and keeps the target activation of every image and the
multiply-adds of every level in ``data/margins.npz``: what ``thousand.py`` makes problems from.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from alexnet import image_folder, trained_alexnet

from circuitcore.engine.executors import ChainExecutor, Executor, executor
from circuitcore.engine.prepare import Prepared, prepare
from circuitcore.extraction.accuracy import Judge, choose_level
from circuitcore.extraction.judging import judges
from circuitcore.inputs.read import read_inputs
from circuitcore.kernels.masked_linear.cpu import Survey, Survivors, plan_chain
from circuitcore.machine.device import machine
from circuitcore.network.forward import Tally
from circuitcore.network.sizes import multiply_adds
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import Contribution, contributions

DATA = Path(__file__).parent / "data" / "margins.npz"
CATEGORIES = ("Pullover", "Coat", "Shirt", "Sneaker")
IMAGES = 40  # a category, of ten
PIXELS = 128
LEVELS = 32
DENSE_FC = 2  # an fc level near those that a category of 1,000 stops at: conv is run behind it too


@dataclass(frozen=True)
class Recorded:
    """One category of the network, L levels a stage, N images.

    ``target`` bool [N]; ``margin`` float32 [N], largest other logit; ``fc`` float32 [L, N],
    activations at the fc levels; ``conv``: the same of the conv levels, by the fc level they
    were run behind; ``costs``: float32 [L, layers], the fraction of each layer's multiply-adds
    that a conv level executes (of the last layer's: of the target row's), again by fc level;
    ``survey``: what survives in the fc layers at each level.
    """

    name: str
    target: np.ndarray
    margin: np.ndarray
    fc: np.ndarray
    conv: dict[int, np.ndarray]
    costs: dict[int, np.ndarray]
    survey: Survey

    def fc_cost(self, levels: Sequence[int], images: int) -> int:
        """Multiply-adds of these fc levels, run together on so many images."""
        layers = [(torch.empty(0), torch.empty(0), None, True) for _ in self.survey.layers]
        return plan_chain(layers, levels, images, survey=self.survey).multiply_adds


def load(path: Path = DATA) -> list[Recorded]:
    """Read the record.  What made it is in its field ``made_by``, as JSON."""
    with np.load(path) as file:
        names = json.loads(str(file["made_by"]))["categories"]
        return [_read(name, {key: file[key] for key in file.files}) for name in names]


def _read(name: str, all_fields: dict[str, np.ndarray]) -> Recorded:
    start = f"{name}/"
    own = {k.removeprefix(start): v for k, v in all_fields.items() if k.startswith(start)}
    needed, top = (own[f"survey/{k}"] for k in ("needed", "top"))
    sizes = own["survey/sizes"].cumsum()[:-1]
    layers = []
    for n, high, count in zip(
        np.split(needed, sizes), np.split(top, sizes), own["survey/count"], strict=True
    ):
        varies = np.minimum(n, high)
        layers.append(Survivors(n, high, np.argsort(255 - varies, kind="stable"), varies, count))
    read = own["survey/read"]
    survey = Survey(layers, np.argsort(255 - read, kind="stable"), read)
    by_level = {
        kind: {
            int(key.split("/")[1]): value.astype(np.float32)
            for key, value in own.items()
            if key.startswith(f"{kind}/")
        }
        for kind in ("conv", "costs")
    }
    return Recorded(
        name,
        own["target"],
        own["margin"],
        own["fc"].astype(np.float32),
        by_level["conv"],
        by_level["costs"],
        survey,
    )


def _fields(survey: Survey) -> dict[str, np.ndarray]:
    return {
        "survey/sizes": np.array([len(layer.needed) for layer in survey.layers]),
        "survey/needed": np.concatenate([layer.needed for layer in survey.layers]),
        "survey/top": np.concatenate([layer.top for layer in survey.layers]),
        "survey/count": np.stack([layer.count for layer in survey.layers]),
        "survey/read": survey.read,
    }


def prepared_alexnet(folder: Path) -> Prepared:
    options = Options(
        model=f"file:{trained_alexnet()}",
        arch="alexnet",
        images=str(image_folder(folder, 4, IMAGES + 1)),
        resize=PIXELS,
        crop=PIXELS,
        extraction_images=IMAGES,
        heldout_images=1,
        levels=str(LEVELS),
        screen="off",
        dtype="float32",
        device="cpu",
    )
    return prepare(read_inputs(options), options, machine(options), Silent())


def record(prepared: Prepared, unit: int) -> dict[str, np.ndarray]:
    """Run one category's levels: the fields of `Recorded`, as they are kept."""
    found = contributions(prepared.runner.network, prepared.scoring_images(unit), unit)
    with torch.inference_mode():
        return _recorded(prepared, unit, found)


def _recorded(
    prepared: Prepared, unit: int, found: Mapping[str, Contribution]
) -> dict[str, np.ndarray]:
    judge, _ = judges(prepared, unit)
    fc, conv = (
        stage_levels(prepared.runner.network, stage, found, unit, prepared.options)
        for stage in ("fc", "conv")
    )
    images = np.arange(len(prepared.extraction))
    runs = executor(prepared.runner, prepared.extraction, unit, fc, {}, Tally())
    assert isinstance(runs, ChainExecutor) and runs.survey is not None
    later = runs.look(range(1, LEVELS), images, True)
    rows = torch.cat([judge.unpruned[None], later]).half()
    fields = {
        "target": judge.is_target.numpy(),
        "margin": judge.margin_max.float().numpy(),
        "fc": rows.numpy(),
        **_fields(runs.survey),
    }
    for level in sorted({DENSE_FC, *(chosen(judge, rows, stop) for stop in STOPS)}):
        behind = executor(prepared.runner, prepared.extraction, unit, conv, fc.kept(level), Tally())
        later = behind.look(range(1, LEVELS), images, True)
        found_rows = torch.cat([rows[level][None], later.half()])
        fields[f"conv/{level}"] = found_rows.numpy()
        fields[f"costs/{level}"] = costs(prepared, behind)
        at = [chosen(judge, found_rows, stop) for stop in STOPS]
        print(f"  conv behind fc level {level}: chosen {at}", flush=True)
    return fields


STOPS = ("first-crossing", "sparsest-above")


def chosen(judge: Judge, rows: torch.Tensor, stop: str) -> int:
    """The level chosen with every one of them run, at 0.9 of the unpruned biased CSA."""
    csas = [each.csa for each in judge.fitted(rows, "exact")]
    reference = judge.fitted(judge.unpruned[None].half(), "exact")[0].csa
    return choose_level(csas, 0.9 * reference, stop)


def costs(prepared: Prepared, runs: Executor) -> np.ndarray:
    """Fraction [L, layers] of each layer's multiply-adds at every conv level of an executor."""
    network = prepared.runner.network
    dense = multiply_adds(network, prepared.extraction.pixels.shape[1:])
    dense[network.last] //= network.outputs
    out = np.zeros((LEVELS, len(dense)))
    places = {name: k for k, name in enumerate(dense)}
    for layer in runs.plan(range(1, LEVELS), 1).layers:
        out[layer.level, places[layer.layer]] = layer.multiply_adds / dense[layer.layer]
    return out


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepared_alexnet(Path(folder))
        kept: dict[str, np.ndarray] = {}
        for category in prepared.inputs.categories:
            if category.name not in CATEGORIES:
                continue
            began = time.perf_counter()
            fields = record(prepared, category.index)
            kept |= {f"{category.name}/{key}": value for key, value in fields.items()}
            print(f"{category.name}: {time.perf_counter() - began:.0f} s", flush=True)
    made_by = {
        "command": "python bench/e2e/margins.py",
        "network": trained_alexnet().name,
        "pixels": PIXELS,
        "images": f"{IMAGES} a category of Fashion-MNIST's test split, ten categories",
        "categories": CATEGORIES,
        "levels": LEVELS,
    }
    DATA.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA, made_by=np.array(json.dumps(made_by)), **kept)
    print(DATA, f"{DATA.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
