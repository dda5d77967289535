"""What a circuit said of single images: decided as accuracy decides, kept with its record."""

import numpy as np
import pytest
import torch
from made_up import category

from circuitcore.errors import InputError
from circuitcore.extraction.accuracy import Judge
from circuitcore.extraction.judging import MOST_ALARMS, MOST_OWN, decisions
from circuitcore.runs.circuitfile import checked_key, read_circuit, read_decisions, write_circuit
from circuitcore.runs.images.decisions import Decision, as_text, of_text

KEPT = {"layer": torch.tensor([[True, False, True]])}
SAID = [Decision(3, True, 1.25, -0.5), Decision(7, False, 1e-7, float("inf"))]


def test_they_are_hits_and_false_alarms_at_that_bias():
    random = torch.Generator().manual_seed(0)
    others, activation, unpruned = (torch.randn(400, generator=random) for _ in range(3))
    judge = Judge(others.double(), torch.arange(400) % 8 == 0, unpruned, "other")
    for bias in (-1.0, 0.0, 0.7):
        found = decisions(judge, activation, bias, 0.25)
        wanted, whole = judge.at(activation, bias), judge.predicted(unpruned, 0.25)
        own = [d for d in found if d.target]
        assert [d.image for d in own] == list(range(0, 400, 8))[:MOST_OWN]
        assert sum(d.margin > 0 for d in own) == round(wanted.hit * 50)
        alarms = [d for d in found if not d.target]
        assert len(alarms) == min(wanted.false_alarms, MOST_ALARMS) and alarms
        margins = [d.margin for d in alarms]
        assert margins == sorted(margins, reverse=True) and min(margins) > 0
        steps = bias + (activation.double() - others.double())
        unseen = np.delete(steps.numpy(), [d.image for d in alarms] + list(range(0, 400, 8)))
        assert unseen.max() <= margins[-1] + 1e-3
        assert all((d.unpruned > 0) == bool(whole[d.image]) for d in found)


def test_a_margin_of_nothing_is_no_hit_and_a_little_one_is():
    judge = Judge(torch.zeros(2).double(), torch.tensor([True, True]), torch.zeros(2), "other")
    at, over = decisions(judge, torch.tensor([0.5, 0.5 + 2**-24]), -0.5, 0.0)
    assert at.margin == 0 and 0 < over.margin < 1e-6


def test_they_come_back_from_a_unit_file(tmp_path):
    path = tmp_path / "k.safetensors"
    write_circuit(path, "k", category(0, "a"), KEPT, SAID)
    assert read_decisions(path) == SAID and checked_key(path) == "k"
    assert torch.equal(read_circuit(path).kept["layer"], KEPT["layer"])
    write_circuit(path, "k", category(0, "a"), KEPT, [])
    assert read_decisions(path) == []


def test_files_without_them_are_whole(tmp_path):
    path = tmp_path / "k.safetensors"
    write_circuit(path, "k", category(0, "a"), KEPT)
    assert b"decisions" not in path.read_bytes()
    assert read_decisions(path) is None and checked_key(path) == "k"


def test_a_spoiled_decision_is_found(tmp_path):
    path = tmp_path / "k.safetensors"
    write_circuit(path, "k", category(0, "a"), KEPT, SAID)
    content = path.read_bytes()
    for old, new in ((b"1.25", b"1.75"), (b'"decisions"', b'"decusions"')):
        assert old in content
        path.write_bytes(content.replace(old, new))
        for read in (checked_key, read_circuit):
            with pytest.raises(InputError, match="damaged"):
                read(path)
    path.write_bytes(content.replace(b"1.25", b"1.75"))
    with pytest.raises(InputError, match="damaged"):
        read_decisions(path)


@pytest.mark.parametrize("text", ["[1]", '{"image": [1]}', "{", '{"image": 1}', "null"])
def test_what_is_no_table_of_them_is_refused(text):
    with pytest.raises(ValueError):
        of_text(text)
    assert of_text(as_text(SAID)) == SAID
