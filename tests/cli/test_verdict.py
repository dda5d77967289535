"""The last lines of a verb: what was found, the report, and the command that comes next."""

import csv
import io
import json
import shlex

import numpy as np
import pytest
from command import call
from made_up import sweep as made_up

from circuitcore.cli.terminal.verdict import conclude, near, of_reproduction, of_sweep

NEXT = "   next: circuitcore "


def test_a_sweep_says_what_it_found(own_small, monkeypatch):
    monkeypatch.chdir(own_small.folder.parent)
    asked = [*own_small.arguments, "--out", "run"]
    shown = [call(*asked, "--format", form) for form in ("json", "table", "csv")]
    found = json.loads(shown[0].stdout)["categories"]
    csas = [
        np.mean([c[a][b]["csa"] for c in found])
        for a, b in (("circuit", "heldout"), ("unpruned", "heldout_biased"), ("empty", "heldout"))
    ]
    pruned = np.mean([c["circuit"]["pruned"] for c in found])
    verdict = (
        f"2 categories: {100 * pruned:.1f} % pruned; held-out CSA {csas[0]:.3f}, unpruned "
        f"{csas[1]:.3f}, empty circuit {csas[2]:.3f}; none undefined"
    )
    for each in shown:
        lines = each.stderr.splitlines()
        assert lines[-2] == verdict
        assert lines[-1] == f"report: run/report.html{NEXT}controls run"
        assert verdict not in each.stdout
    assert call(*asked, "-q").stderr == ""


def test_undefined_categories_are_counted():
    names = ("a", "b", "c")
    assert of_sweep(made_up(names, undefined=("b",))).endswith("; 1 undefined (NA)")
    assert of_sweep(made_up(names[:1], undefined=("a",))) == (
        "1 category, none with a circuit: 1 undefined (NA)"
    )


def test_what_comes_next_is_what_was_not_asked_yet(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "my run"
    run.mkdir()
    conclude("said", run, quiet=False)
    assert capsys.readouterr().err == ""  # no report, no verdict
    (run / "report.html").touch()
    conclude("said", run, quiet=True)
    assert capsys.readouterr().err == ""
    verbs = []
    for file in ("controls.json", "resamples.json", "structure.json", "lesions", ""):
        conclude("said", run, quiet=False, report_next=False)
        first, last = capsys.readouterr().err.splitlines()
        assert first == "said" and last.startswith(f"report: my run/report.html{NEXT}")
        words = shlex.split(last.partition("next: ")[2])
        assert words[0] == "circuitcore" and words[2] == "my run"
        verbs.append(words[1])
        (run / file).touch()
    assert verbs == ["controls", "stability", "structure", "lesion", "export"]


def test_a_path_is_from_here_where_it_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert near(tmp_path / "a" / "b") == "a/b" and near(tmp_path.parent) == str(tmp_path.parent)


@pytest.mark.parametrize(
    ("command", "begins"),
    [
        (["evaluate"], "2 circuits: held-out CSA "),
        (["controls"], "held-out CSA, means: circuit "),
        (["stability", "--resamples", "3"], "2 circuits from other scoring images: overlap "),
        (["lesion"], "circuit: own CSA "),
    ],
)
def test_questions_say_what_they_found(own_small, command, begins):
    verb, *more = command
    said = call(verb, own_small.folder, *more, "--format", "csv")
    lines = said.stderr.splitlines()
    assert lines[-2].startswith(begins) and "report: " in lines[-1]
    assert lines[-1].endswith(f"{NEXT}{'controls' if verb == 'evaluate' else 'report'} "
                              f"{own_small.folder}") or verb == "evaluate"  # fmt: skip
    if verb == "evaluate":
        rows = list(csv.DictReader(io.StringIO(said.stdout)))
        own = np.mean([float(row["circuit_csa"]) for row in rows])
        floor = np.mean([float(row["empty_csa"]) for row in rows])
        assert f"held-out CSA {own:.3f}, unpruned" in lines[-2]
        assert lines[-2].endswith(f"empty circuit {floor:.3f}; 0 undefined")


def test_a_reproduction_says_how_near_the_preset_is():
    from types import SimpleNamespace

    cells = [SimpleNamespace(distance=d, undefined={"no hits": 1}) for d in (0.3, 0.1, None)]
    order = [cells[1], cells[0], cells[2]]
    found = SimpleNamespace(by_distance=order, preset=cells[0], categories=4)
    assert of_reproduction(found) == (
        "3 readings of 4 categories: the preset is number 2 by distance (0.300, the nearest "
        "0.100); 1 undefined by it"
    )
