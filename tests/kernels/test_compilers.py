"""What Triton needs beside itself: a C compiler and Python's headers, or a GPU runs plain torch."""

import warnings

import pytest
import torch
from command import call

from circuitcore.errors import DeviceError
from circuitcore.kernels import compilers
from circuitcore.kernels.dispatch import choose_on
from circuitcore.machine.device import machine
from circuitcore.options import Options

CUDA = torch.device("cuda:0")


def forget():
    compilers.missing.cache_clear()
    compilers.warn_of.cache_clear()


needs_triton = pytest.mark.skipif(not compilers.HAS_TRITON, reason="Triton exists on Linux only")


@pytest.fixture(params=["compiler", "CC", "headers"])
def lacks(request, monkeypatch, tmp_path):
    """Takes one of the things away; what a message must name."""
    monkeypatch.delenv("CC", raising=False)
    if request.param == "CC":
        monkeypatch.setenv("CC", str(tmp_path / "cc-of-nobody"))
    elif request.param == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setattr("sysconfig.get_paths", lambda **_: {"include": str(tmp_path)})
    forget()
    yield {"compiler": "apt-get install gcc", "CC": "cc-of-nobody", "headers": "python3-dev"}[
        request.param
    ]
    forget()


@needs_triton
def test_a_gpu_runs_torch_with_one_warning(lacks):
    with pytest.warns(UserWarning, match=lacks) as said:
        assert choose_on("auto", CUDA) == choose_on("auto", CUDA) == "torch"
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_on("auto", torch.device("cpu"), cpu="numba") == "numba"


@needs_triton
def test_triton_forced_says_what_is_missing(lacks, monkeypatch):
    monkeypatch.setattr("circuitcore.machine.device.pick", lambda options: CUDA)
    with pytest.raises(DeviceError, match=f"--impl triton on cuda:0.*{lacks}"):
        machine(Options(impl="triton"))


@needs_triton
def test_doctor_says_it(lacks):
    lines = call("doctor").stdout.splitlines()
    (line,) = [line for line in lines if " triton: " in line]
    assert line.startswith("warning") and lacks in line and "plain torch" in line


@needs_triton
def test_nothing_is_missing_where_all_is_there(monkeypatch):
    forget()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert compilers.missing() == "" and choose_on("auto", CUDA) == "triton"
    forget()
