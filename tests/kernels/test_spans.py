"""The ranges a profiler sees nest as the work does, also where it fails."""

import threading

import pytest

from circuitcore.errors import InputError, PartialError
from circuitcore.jobs.job import sweep
from circuitcore.kernels import spans
from circuitcore.options import Options
from circuitcore.progress import Silent


class Listener:
    """Stands in for the NVTX domain of a process under a profiler: keeps the tree of ranges."""

    def __init__(self) -> None:
        self._stacks: dict[int, list[tuple]] = {}  # by thread
        self.seen: list[tuple] = []  # (kind, name, payload, the ranges around it)
        self.marks: list[tuple] = []  # (what, how much, the range it is in)

    @property
    def open(self) -> list[tuple]:
        return self._stacks.setdefault(threading.get_ident(), [])

    def get_event_attributes(self, message, color, category, payload):
        return category, message, payload, color

    def push_range(self, attributes) -> None:
        self.seen.append((*attributes[:3], tuple(self.open)))
        self.open.append(attributes[:2])

    def pop_range(self) -> None:
        self.open.pop()

    def mark(self, attributes) -> None:
        self.marks.append((*attributes[1:3], self.open[-1]))

    def around(self, kind, name):
        """(payload, ranges around) of each range of this kind and name."""
        return [(each[2], each[3]) for each in self.seen if each[:2] == (kind, name)]


@pytest.fixture
def listener(monkeypatch):
    listener = Listener()
    monkeypatch.setattr(spans, "_domain", listener)
    return listener


def small(folder) -> Options:
    return Options(
        scoring_images=1, extraction_images=2, heldout_images=2, levels="0,0.5", threshold=0.1,
        device="cpu", out=folder,
    )  # fmt: skip


def test_a_run_holds_its_categories_and_they_their_stages(listener, tmp_path):
    sweep(small(tmp_path), ["Trouser", "Bag"], Silent())
    run = ("run", "sweep")
    assert listener.around(*run) == [(None, ())]
    for name, unit in (("Trouser", 1), ("Bag", 8)):
        assert listener.around("category", name) == [(unit, (run,))]
        inside = [each for each in listener.seen if ("category", name) in each[3]]
        assert ("stage", "commit", None, (run, ("category", name))) in inside
        stages = {each[1] for each in inside if each[0] == "stage"}
        assert stages >= {"scoring", "levels", "fc", "conv", "held-out", "test", "random masks"}
    for stage in ("unpruned extraction", "unpruned heldout", "report"):
        assert listener.around("stage", stage) == [(None, (run,))]
    assert ("stage", "unpruned extraction") in listener.around("stage", "wait for images")[0][1]
    rows = {row for row, around in listener.around("stage", "decode") if run not in around}
    assert set(range(1, 40)) <= rows  # on threads of their own
    assert listener.open == []


def test_a_category_that_fails_closes_its_range(listener, tmp_path, monkeypatch):
    def fail(*arguments):
        raise InputError("no scores")

    monkeypatch.setattr("circuitcore.jobs.job.swept_circuit", fail)
    with pytest.raises(PartialError, match="2 of 2"):
        sweep(small(tmp_path), ["Trouser", "Bag"], Silent())
    assert listener.around("category", "Bag") == [(8, (("run", "sweep"),))]
    assert listener.open == []


def test_layers_say_what_they_do(listener, tmp_path):
    """Of one level of the conv stage and the fc chain: the multiply-adds that are counted."""
    run = sweep(small(tmp_path), ["Trouser"], Silent())
    (record,) = run.records()
    layers = ("features.0", "features.3", "classifier.1", "classifier.6")
    told = {layer for what, _, (kind, layer) in listener.marks if kind == "layer"}
    assert told >= set(layers)
    assert {what for what, *_ in listener.marks} == {"multiply-adds", "bytes"}
    assert all(number >= 0 for _, number, _ in listener.marks)
    counted = record.cost.multiply_adds
    done = sum(number for what, number, _ in listener.marks if what == "multiply-adds")
    assert done > counted  # scoring, the unpruned network and random masks are not in FPE


def test_without_a_profiler_a_range_is_the_shared_nothing():
    assert spans.span("level", "fc", 1) is spans.span("kernel", "fc", 2)
