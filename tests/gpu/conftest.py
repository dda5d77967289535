"""Tests that need a GPU: skipped, saying so, without one.

``CIRCUITCORE_REQUIRE_GPU=1`` turns the skip into a failure: a GPU runner that lost its device
must not pass.
"""

import os

import pytest
import torch


def pytest_runtest_setup(item):
    if torch.cuda.is_available():
        return
    if os.environ.get("CIRCUITCORE_REQUIRE_GPU") == "1":
        pytest.fail("CIRCUITCORE_REQUIRE_GPU=1, but torch finds no GPU", pytrace=False)
    pytest.skip("needs a GPU: torch finds none")
