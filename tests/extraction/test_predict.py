"""Seconds on a device that is not here: by part, marked, the same in every format."""

from __future__ import annotations

import json
import re

import pytest
import torch
from command import call
from pretend.device import pretended

import circuitcore
from circuitcore.errors import UsageError
from circuitcore.machine.target import MARK, TARGETS, Work, kernel, target_named, target_of

SHAPES = ["--model", "tv:alexnet-shapes"]
PARTS = ["scoring, levels", "fc stage", "conv stage", "certification", "held-out test",
         "float32 rechecks", "random masks", "host", "test, commit"]  # fmt: skip
ONCE = ["decoding", "unpruned network", "upload of images", "graphs captured"]


@pytest.fixture(scope="module")
def paper():
    return {
        dtype: circuitcore.plan("tv:alexnet-shapes", target="H100", dtype=dtype).target
        for dtype in ("auto", "float32")
    }


def test_the_papers_problem(paper):
    """Parts, their order, and a category's sum; what goes on beside is not in it."""
    for said in paper.values():
        assert [p.part for p in said.category] == PARTS and [p.part for p in said.run] == ONCE
        assert said.categories == 1000 and said.name == "h100"
        added = sum(p.seconds for p in said.category if not p.beside)
        assert said.seconds_per_category == pytest.approx(added)
        assert said.seconds > 1000 * said.seconds_per_category
        assert said.before is not None and said.before.pcie_bytes == 8_100_000_000
    assert paper["auto"].precision == "bfloat16" and paper["float32"].precision == "IEEE float32"
    same = paper["auto"].other_precisions["IEEE float32"]
    assert same == pytest.approx(paper["float32"].seconds_per_category)


def test_counts_are_at_least_the_arithmetic(paper):
    """Held out: 30,000 images of 0.71 GMAC, in whole batches of 512, conv1 in blocks of pixels."""
    (held,) = [p for p in paper["float32"].category if p.part == "held-out test"]
    needed = 30_000 * 710e6
    assert needed < held.multiply_adds < 1.05 * needed
    assert held.seconds >= 2 * held.multiply_adds / TARGETS["h100"].rate("float32")
    assert held.replays == -(-30_000 // 512)
    # an image's number there, its activation back
    assert held.pcie_bytes == 30_000 * (8 + 4)
    for said in paper.values():
        for part in [*said.category, *said.run]:
            assert part.seconds >= 0.9 * part.bytes / TARGETS["h100"].device.bandwidth


def test_the_table(capsys):
    text = call("plan", *SHAPES, "--target", "h100", "--dtype", "bfloat16").stdout
    assert max(map(len, text.splitlines())) <= 80
    timed = [line for line in text.splitlines() if re.search(r"\d (s|min)( |$)", line)]
    timed = [line for line in timed if "assum" not in line and "an image" not in line]
    assert len(timed) >= len(PARTS) + len(ONCE) + 4
    assert all(MARK in line for line in timed)
    assert "assumption" in text and "swept in bfloat16" in text


def test_json_and_csv():
    said = json.loads(call("plan", *SHAPES, "--target", "a100", "--format", "json").stdout)
    target = said["target"]
    assert target["name"] == "a100" and target["mark"] == MARK and said["seconds"] is None
    assert {p["mark"] for p in target["category"] + target["run"]} == {MARK}
    assert all(each["source"] for each in target["assumptions"])
    rows = call("plan", *SHAPES, "--target", "a100", "--format", "csv").stdout.splitlines()
    assert len(rows) == 1 + len(PARTS) + len(ONCE) and all(MARK in row for row in rows[1:])


def test_names():
    assert target_of("RTX4090") is TARGETS["rtx4090"]
    with pytest.raises(UsageError, match="a100, l40s, rtx4090, h100, h200"):
        target_of("v100")
    assert "a100, l40s" in call("plan", "--target", "h1000", code=2).stderr
    assert target_named("NVIDIA H100 80GB HBM3") is TARGETS["h100"]
    assert target_named("NVIDIA GeForce RTX 4090") is TARGETS["rtx4090"]
    assert target_named("NVIDIA A100-SXM4-80GB") is TARGETS["a100"]
    assert target_named("Tesla T4") is None


def test_only_a_plan_takes_shapes():
    for verb in (["sweep"], ["score"], ["stability"], ["plan"]):
        assert "plan --target" in call(*verb, *SHAPES, code=2).stderr
    assert "--exact" in call("plan", *SHAPES, "--target", "h100", "--exact", code=2).stderr


@pytest.mark.parametrize("target", list(TARGETS))
def test_every_level_of_a_small_problem(target):
    """Looks at every level; no device is asked for anything."""
    assert not torch.cuda.is_initialized()
    said = circuitcore.plan(target=target, dtype="bfloat16", levels="9").target
    conv = next(p for p in said.category if p.part == "conv stage")
    assert conv.replays == 8 and said.looks == "every level on every image"
    assert said.before is None and said.categories == 10


def test_a_device_is_named_in_its_plan():
    """What a sweep on a device of a known name took stands beside what was predicted."""
    few = {"extraction_images": 4, "heldout_images": 4, "levels": "3"}
    with pretended():
        planned = circuitcore.plan(device="cuda:0", probe=False, **few)
    assert planned.target.name == "h100" and planned.target.mark == MARK
    assert circuitcore.plan(device="cpu", probe=False, **few).target is None


def test_work():
    h100 = TARGETS["h100"]
    bound = kernel(h100, 1e12, 1e6, 4e14)
    assert bound.busy == pytest.approx(2e12 / 4e14)
    assert kernel(h100, 0, 3.35e12).busy == pytest.approx(1 / 0.9)
    assert (Work(launches=2) * 3 + Work(syncs=1)).seconds(h100) == pytest.approx(50e-6)
