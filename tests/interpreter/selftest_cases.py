"""The self-test's small trials on what the kernels really compute: right ones pass, wrong ones not.

bfloat16 is left out: the interpreter computes it wrongly.
"""

from dataclasses import replace

import pytest
import torch

from circuitcore.kernels import selftest, verdicts

SMALL = [(n, t) for n, t in selftest.collect() if not t.real and t.dtype != "bfloat16"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("operation", verdicts.operations())
def test_small_trials_pass(operation):
    outcomes = selftest.run(CPU, [each for each in SMALL if each[0] == operation])
    assert outcomes and {o.state for o in outcomes} == {"passed"}, outcomes


@pytest.mark.parametrize("operation", ["first_conv", "masked_linear", "overlap", "score_linear"])
def test_one_element_that_is_not_written_fails(operation):
    def kernel(**given):
        found = trial.kernel(**given).clone()
        found.view(-1)[-1] = torch.nan if found.is_floating_point() else 77
        return found

    trial = next(t for n, t in SMALL if n == operation)
    (outcome,) = selftest.run(CPU, [(operation, replace(trial, kernel=kernel))])
    assert outcome.state == "failed"
