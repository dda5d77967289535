"""Which rows read and which columns are read, against comparing everything."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcore.kernels.survivors.operation import columns_read, rows_reading

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool]


@given(
    st.integers(0, 150),
    st.integers(0, 70),
    st.sampled_from([0.0, 0.005, 0.1, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from(DTYPES),
    st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_random_matrices(rows, columns, density, alive, dtype, seed):
    random = torch.Generator().manual_seed(seed)
    matrix = (torch.rand(rows, columns, generator=random) < density).to(dtype)
    live_columns = torch.rand(columns, generator=random) < alive
    live_rows = torch.rand(rows, generator=random) < alive
    want = matrix.ne(0)
    assert torch.equal(rows_reading(matrix, live_columns), (want & live_columns).any(1))
    assert torch.equal(columns_read(matrix, live_rows), (want & live_rows[:, None]).any(0))


@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_not_a_number_and_strides(dtype):
    matrix = torch.zeros(9, 12, dtype=dtype)
    matrix[4, 6] = torch.nan
    every = torch.ones(12, dtype=torch.bool)
    assert rows_reading(matrix, every).nonzero().flatten().tolist() == [4]
    other = matrix.T[::2]  # column 6 of matrix is its row 3
    assert rows_reading(other, every[:9]).nonzero().flatten().tolist() == [3]
    assert columns_read(other, every[:6]).nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_numba_leaves_torch_its_number_of_threads(threads, monkeypatch):
    """In a process of its own, where numba has not started any."""
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    code = """
import torch
weight = torch.rand(64, 300)
from circuitcore.kernels.levels.layer import LayerScores
from circuitcore.kernels.levels.operation import assign_levels
assign_levels([LayerScores(weight, weight)], [10, 100], impl="numba")
from circuitcore.kernels.survivors.operation import rows_reading
rows_reading(weight, torch.ones(300, dtype=torch.bool))
print(torch.get_num_threads())
"""
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (said.stdout, said.returncode) == (f"{threads}\n", 0), said.stderr
