"""28 and 33 over a whole run: workers are killed again and again, and every category is done once.

``pytest -m slow -s tests/faults/test_soak.py`` does a thousand categories.
"""

import pytest
from command import call
from soak import soak, write_problem

from circuitcore.runs.folder import open_run


def soaked(folder, categories: int, kills: int):
    problem = write_problem(folder, categories)
    run = folder / "run"
    call("sweep", "0", *problem, "--out", run)  # begins it: workers join
    seen, started = soak(run, categories, kills, seed=0)
    assert started == 2 + kills
    assert len(seen.units) == categories and seen.again == []
    opened = open_run(run)
    assert sorted(opened.units()) == list(range(categories))
    assert not list(run.glob("failed/*")) and not list(run.glob("claims/*"))
    call("report", run)
    call("verify", run)
    records = opened.records()
    assert sum(record.circuit is not None for record in records) > categories / 2
    print(f"{categories} categories, {started} workers of which {kills} killed, each done once; "
          f"memory in the last quarter {seen.growth():.3f} x that of the second")  # fmt: skip
    return seen


def test_workers_killed_again_and_again(tmp_path):
    soaked(tmp_path, 30, 3)


@pytest.mark.slow
def test_a_thousand_categories(tmp_path):
    assert soaked(tmp_path, 1000, 40).growth() < 1.05
