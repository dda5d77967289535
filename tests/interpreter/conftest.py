"""Kernels as Triton's interpreter runs them, in a process of their own (`test_interpreter.py`).

The interpreter computes bfloat16 wrongly (dots off by 1e11, truncating casts): cases here use
float16, float32 and float64; bfloat16 is compiled ahead of time instead (`test_aot.py`).
"""

import os

import pytest


def pytest_configure(config):
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError(
            "set TRITON_INTERPRET=1 before the kernels are imported; "
            "pytest tests/kernels/test_interpreter.py does"
        )
