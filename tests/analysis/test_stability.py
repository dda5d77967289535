"""Stability: the correlation is that of the scores themselves, stage by stage."""

import numpy as np
import pytest
from scipy.stats import spearmanr

import circuitcore as cc
from circuitcore.analysis.stability import stability
from circuitcore.options import Options
from circuitcore.progress import Silent


def test_it_compares_one_image_with_two_and_two_with_four():
    rows = stability(Options(device="cpu"), ["Trouser"], Silent())
    found = {(row.stage, row.images, row.twice) for row in rows}
    assert found == {(stage, k, 2 * k) for stage in ("fc", "conv") for k in (1, 2)}
    assert all(0 < row.spearman <= 1 for row in rows)


def test_it_is_the_rank_correlation_of_the_scores():
    """The conv stage is not normalised, so that the scores alone say it."""
    scores = [cc.score("bundled", "bundled", "Bag", scoring_images=k, device="cpu") for k in (1, 2)]
    flat = [np.concatenate([s[n].flatten() for n in s if n.startswith("f")]) for s in scores]
    table = cc.stability(categories="Bag", scoring_images=2, device="cpu")
    (row,) = [row for row in table if row["stage"] == "conv"]
    assert row["spearman"] == pytest.approx(spearmanr(*flat).statistic, abs=1e-6)


def test_one_image_is_too_few():
    with pytest.raises(cc.InputError, match="2 or more"):
        cc.stability(scoring_images=1)
