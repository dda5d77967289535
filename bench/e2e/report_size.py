"""A report of a thousand categories: how large its file is, and how soon a browser has opened it.

``python bench/e2e/report_size.py FOLDER --categories 1000`` writes a run of as many categories with
real files: images on disk, unit files with masks drawn at random and records of the bundled
example's, their curves shaken, then its report, and opens that in headless Chromium (Debian's
``chromium`` and ``chromium-driver``, and the package selenium) where there is one.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from circuitcore.api.verbs import sweep
from circuitcore.inputs.models import Model
from circuitcore.inputs.read import InHand, Inputs, read_inputs
from circuitcore.jobs.job import finish, report
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.records import Category
from circuitcore.runs.circuitfile import write_circuit
from circuitcore.runs.folder import create_run, open_run
from circuitcore.runs.images.decisions import Decision

SIDE, TRAIN, VAL = 64, 1, 3  # pixels of an image; images a category
OPENINGS = 5


def write_images(root: Path, categories: int) -> None:
    """A folder in ImageNet's layout, images smooth like photographs, each one its own."""
    for unit in range(categories):
        random = np.random.default_rng(unit)
        coarse = random.integers(0, 256, (8, 8, 3))
        for part, count in (("train", TRAIN), ("val", VAL)):
            folder = root / part / f"category {unit:04}"
            if len(list(folder.glob("*.jpg"))) == count:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shaken = np.clip(coarse + random.normal(0, 25, coarse.shape), 0, 255)
                image = Image.fromarray(shaken.astype(np.uint8))
                image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                image.save(folder / f"{part}{number}.jpg", quality=90)


def inputs_of(options: Options, categories: int) -> Inputs:
    """A small network of as many outputs, in hand, and the images."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 4, stride=4), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(16 * (SIDE // 4) ** 2, categories),
    )  # fmt: skip
    names = [f"category {unit:04}" for unit in range(categories)]
    from torchvision.transforms import v2

    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return read_inputs(options, InHand(model=Model.of(net.eval(), transform, names)))


def made(folder: Path, categories: int) -> Path:
    """Write the run; its folder."""
    write_images(folder / "images", categories)
    options = Options(
        model="in hand", images=str(folder / "images"), scoring_images=1, extraction_images=1,
        heldout_images=2,
    )  # fmt: skip
    inputs = inputs_of(options, categories)
    run = create_run(folder / "run", inputs, options, torch.device("cpu"))
    network = inputs.model.network
    shapes = {name: network.relevant_shape(name) for name in network.layers()}
    records = open_run(sweep(out=folder / "bundled").folder).records()
    for unit in range(categories):
        random = np.random.default_rng(unit)
        density = random.uniform(0.02, 0.9)
        kept = {n: torch.from_numpy(random.random(s) < density) for n, s in shapes.items()}
        name = inputs.categories[unit].name
        record = shaken(records[unit % len(records)], random, name, unit)
        images = [2 * unit, 2 * unit + 1, *map(int, random.integers(0, 2 * categories, 6))]
        decided = [Decision(n, n // 2 == unit, *map(float, random.normal(1, 2, 2))) for n in images]
        write_circuit(run.path(unit), run.path(unit).stem, record, kept, decided)
    return run.folder


def shaken(record: Category, random: np.random.Generator, name: str, unit: int) -> Category:
    """A record of another name, its hit rates moved a little at every level."""
    stages = []
    for stage in record.stages:
        moved = np.array([level.hit for level in stage.levels]) + random.normal(0, 0.03)
        levels = [
            level.model_copy(update={"hit": float(hit)})
            for level, hit in zip(stage.levels, np.clip(moved, 0, 1), strict=True)
        ]
        stages.append(stage.model_copy(update={"levels": levels}))
    assert record.circuit is not None
    pruned = float(np.clip(record.circuit.pruned + random.normal(0, 0.02), 0, 1))
    circuit = record.circuit.model_copy(update={"file": "", "pruned": pruned})
    changed = {"category": name, "index": unit, "stages": stages, "circuit": circuit}
    return record.model_copy(update=changed)


def opened(page: Path) -> list[float]:
    """Seconds from asking for a page until its script has run, in a browser that runs already."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    took = []
    try:
        for _ in range(OPENINGS):
            browser.get("about:blank")
            browser.get(page.resolve().as_uri())
            navigation = "performance.getEntriesByType('navigation')[0]"
            took.append(browser.execute_script(f"return {navigation}.loadEventEnd") / 1000)
    finally:
        browser.quit()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--categories", type=int, default=1000)
    given = parser.parse_args()
    run = open_run(made(given.folder, given.categories))
    finish(run, Silent())
    began = time.perf_counter()
    page = report(run, Silent())
    print(f"report: {time.perf_counter() - began:.1f} s, {page.stat().st_size / 1e6:.2f} MB")
    took = opened(page)
    print(
        f"opened in {statistics.median(took):.2f} s (median of {len(took)}, most {max(took):.2f})"
    )


if __name__ == "__main__":
    main()
