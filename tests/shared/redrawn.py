"""Circuits from extraction images drawn again in full: every level run, every bias fitted anew.

What `analysis.resampling.choice` says from counts alone is held against it.
"""

import numpy as np
import torch

from circuitcore.analysis.evaluation import prepared_run
from circuitcore.extraction.accuracy import Judge, choose_level
from circuitcore.extraction.judging import judge_of
from circuitcore.extraction.stage import ranked, stage_executors
from circuitcore.progress import Silent
from circuitcore.runs.circuitfile import read_circuit


def redrawn(folder, draws):
    """{category: kept weights [stages, draws]} of a run, each stage with the earlier ones' circuit.

    Targets and others are drawn with replacement; the reference and each level's matched bias are
    found on each draw.
    """
    run, prepared = prepared_run(folder, Silent())
    return {
        record.category: np.array(
            [_kept(prepared, curves, record, images) for images in _draws(prepared, record, draws)]
        ).T
        for record, curves in (_curves(prepared, path) for path in run.units().values())
    }


def _curves(prepared, path):
    """The record and each stage's activations [levels, images], level 0 first."""
    stored = read_circuit(path)
    record, kept, curves = stored.record, {}, []
    start = judge_of(prepared.extraction, record.index, "other").unpruned
    every = np.arange(len(prepared.extraction))
    work = ranked(prepared, record.index)
    executors = stage_executors(prepared, record.index, work, kept)
    for runs, stage in zip(executors, record.stages, strict=True):
        levels = range(1, len(stage.levels))
        curves.append(torch.cat([start[None], runs.look(levels, every, True)]))
        start = curves[-1][stage.chosen]
        kept |= {name: stored.kept[name] for name in prepared.runner.network.layers(stage.stage)}
    return record, curves


def _draws(prepared, record, draws):
    is_target = (prepared.extraction.labels == record.index).numpy()
    random = np.random.default_rng(record.index)
    parts = np.flatnonzero(is_target), np.flatnonzero(~is_target)
    for _ in range(draws):
        yield np.concatenate([random.choice(part, len(part)) for part in parts])


def _kept(prepared, curves, record, images):
    """Weights kept by each stage at the level that these images choose."""
    options = prepared.options
    whole = judge_of(prepared.extraction, record.index, options.false_alarm_norm)
    judge = Judge(
        whole.margin_max[images], whole.is_target[images], whole.unpruned[images], whole.norm
    )
    reference = judge.fitted(judge.unpruned[None], options.bias)[0].hit
    found = []
    for curve, stage in zip(curves, record.stages, strict=True):
        hits = [each.hit for each in judge.fitted(curve[:, images], options.bias)]
        threshold = options.stage_threshold(stage.stage) * reference
        found.append(stage.levels[choose_level(hits, threshold, options.stop)].kept_weights)
    return found
