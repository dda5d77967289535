"""The thousand-way problem itself: 1,000 characters, 50,000 images, a full-size AlexNet.

Twenty minutes and 0.7 GB the first time, on two cores; the folder is ``CIRCUITCORE_GLYPHS`` or made
anew.  ``pytest -m slow tests/glyphs``; needs the fonts that ``bench/e2e/glyphs.py`` names.
"""

import os
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "e2e"


@pytest.mark.slow
def test_the_defaults_hold_at_a_thousand_categories(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    glyph_sweep, glyphs = (__import__(name) for name in ("glyph_sweep", "glyphs"))
    folder = Path(os.environ.get("CIRCUITCORE_GLYPHS", tmp_path))
    try:
        images, weights = glyphs.problem(folder)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    units = glyph_sweep.drawn(1000, 4)
    run = glyph_sweep.swept(tmp_path / "run", images, weights, units)
    document = run.document
    assert document.summary.undefined == {}
    for category in document.categories:
        assert category.circuit.heldout.csa_ratio_biased is not None
        assert category.circuit.extraction.false_alarms <= category.unpruned.extraction.false_alarms
        assert category.random_masks.as_good == 0
        assert category.cost.fpe < 3
    assert 0.6 < document.summary.ratio_of_means < 1.2
    off = glyph_sweep.swept(tmp_path / "off", images, weights, units[:1], screen="off")
    assert glyph_sweep.against_off(run, off) == 0
