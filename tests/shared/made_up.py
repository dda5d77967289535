"""A sweep document made up for the tests of what prints it: no model, no images."""

from circuitcore.analysis.summary import summarise
from circuitcore.records import (
    Accuracy,
    Category,
    Circuit,
    Cost,
    Empty,
    Faithfulness,
    HeldOut,
    Level,
    Overlap,
    Stage,
    Sweep,
    Unpruned,
)

SCRIPT = "<script>alert(1)</script>"
NAMES = [
    "Trouser",
    "T-shirt/top",
    SCRIPT,
    "=cmd|' /C calc'!A0",
    "a $b$ c",
    "two\nlines\x07",
    "né 🦆",
]


def accuracy(hit: float, false: int, bias: float) -> Accuracy:
    return Accuracy(
        hit=hit, false_alarm=false / 180, false_alarms=false, csa=hit - false / 20, bias=bias
    )


def category(index: int, name: str, defined: bool = True) -> Category:
    base = accuracy(0.9, 1, 0.0)
    unpruned = Unpruned(extraction=base, extraction_biased=base, heldout=base, heldout_biased=base)
    stages = []
    for stage, weights in (("fc", 50_000), ("conv", 9_000)):
        levels = []
        for t in range(12):
            kept = int(weights * 0.5**t)
            csa = 0.95 - 0.002 * t**2 - 0.01 * (index % 3)
            levels.append(
                Level(
                    level=t,
                    pruned=1 - kept / weights,
                    kept_weights=kept,
                    images=200,
                    hit=0.95,
                    false_alarm=0.0,
                    false_alarms=0,
                    csa=csa,
                    csa_lo=csa,
                    csa_hi=csa + 0.05 * (t == 5),
                    bias=0.1,
                )  # fmt: skip
            )
        stages.append(
            Stage(stage=stage, relevant_weights=weights, tied_zero=0.4, reference_csa=0.9,
                  threshold_csa=0.81, chosen=7, levels=levels)
        )  # fmt: skip
    heldout = HeldOut(
        **accuracy(0.85, 2, 0.4).model_dump(), csa_ratio=0.88, csa_ratio_ci95=(0.7, 1.02),
        csa_ratio_biased=0.9, csa_ratio_biased_ci95=(0.72, 1.05),
    )  # fmt: skip
    circuit = Circuit(
        pruned=0.9 + index / 200, pruned_fc=0.99, pruned_conv=0.9, kept_weights=800, bias=0.4,
        extraction=accuracy(0.9, 1, 0.4), heldout=heldout, file=f"units/{index:02}.safetensors",
    )  # fmt: skip
    return Category(
        category=name, index=index, unpruned=unpruned, stages=stages if defined else [],
        circuit=circuit if defined else None, cost=Cost(seconds=1.5, fpe=9.5, multiply_adds=10**9),
        empty=Empty(extraction=accuracy(0.5, 0, -1.0), heldout=accuracy(0.45, 0, -1.0)),
        faithfulness=Faithfulness(extraction=0.9, heldout=0.8, heldout_ci95=(0.6, 1.0))
        if defined else None,
        undefined=None if defined else "reference not positive",
    )  # fmt: skip


def sweep(names=tuple(NAMES), undefined=()) -> Sweep:
    categories = [category(i, n, n not in undefined) for i, n in enumerate(names)]
    run = {
        "folder": "runs/made-up",
        "model": {"name": "made <up>", "relevant_weights": 59_000, "weights_sha256": "ab" * 32},
        "images": {"folder": "/images & more", "scoring": 28, "extraction": 140, "heldout": 210},
        "categories": [{"index": i, "name": n} for i, n in enumerate(names)],
        "options": {"levels": "32", "threshold": 0.9, "model": "file:<b>.safetensors"},
        "versions": {"circuitcore": "0.1.0", "torch": "2"},
        "device": "cpu",
    }
    overlap = Overlap(
        pairs=len(names) * (len(names) - 1) // 2, mean=0.4, min=0.1, max=0.8, mean_chance=0.2,
        file="overlap.parquet",
    )  # fmt: skip
    return Sweep(
        schema="circuitcore.sweep/2", run=run, categories=categories, overlap=overlap,
        summary=summarise(categories),
    )  # fmt: skip
