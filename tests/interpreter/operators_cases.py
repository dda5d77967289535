"""The custom operators with their Triton kernels behind them: fake and real agree."""

import importlib.util
from pathlib import Path

import pytest
import torch

from circuitcore.kernels.levels import gpu as levels_triton
from circuitcore.kernels.levels import gpu_select  # noqa: F401 - registers an operator
from circuitcore.kernels.levels.layer import LayerScores
from circuitcore.kernels.score_linear.gpu import LinearTile

spec = importlib.util.spec_from_file_location(
    "test_operators", Path(__file__).parent.parent / "kernels" / "test_operators.py"
)
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)


def passes():
    """Calls of the passes of `levels`, on one factored layer and on given scores."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 20, generator=random)
    factored = LayerScores(weight, left=weight[:, :3], right=weight[:, :], form="signed")
    calls = {"levels_range": [], "levels_histogram": [], "levels_bytes": [], "levels_refine": []}
    for scores in (factored, LayerScores(weight, values=weight**3)):
        layer = levels_triton.prepared(scores, LinearTile(2, 16))
        factors = layer.weight, layer.left, layer.right
        table, first = torch.zeros(4, 65536, dtype=torch.int16), torch.zeros(4, dtype=torch.int32)
        counts = torch.zeros(1, 65536, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        calls["levels_range"].append((*factors, layer.layout))
        calls["levels_histogram"].append(
            (*factors, table, first, *counts, layer.norm, layer.layout, 0)
        )
        ties = torch.zeros(4, dtype=torch.int64), *torch.zeros(2, 4, dtype=torch.int32)
        level = torch.zeros(weight.numel(), dtype=torch.uint8)
        calls["levels_bytes"].append(
            (*factors, table, first, level, *ties, layer.norm, layer.layout, 16)
        )
    wanted, rows = torch.tensor([[0, 7]], dtype=torch.int32), torch.zeros(1, 65536).short()
    told, below = torch.zeros(5, dtype=torch.int32), torch.ones(3, dtype=torch.int32)
    histogram = torch.ones(1, 65536, dtype=torch.int32)
    calls["levels_refine"].append((histogram, wanted, rows, told, below, 1, False))
    return calls


CALLS = plain.arguments("triton") | passes()


@pytest.mark.parametrize("name", sorted(CALLS))
def test_fake_and_real_agree(name):
    for call in CALLS[name]:
        operator = getattr(plain.OPERATORS, name)
        torch.library.opcheck(operator, call, test_utils=plain.NO_GRADIENT)


def test_none_is_left_out():
    registered = torch._C._dispatch_get_all_op_names()
    ours = {name.partition("::")[2] for name in registered if name.startswith("circuitcore::")}
    assert ours == set(CALLS)
