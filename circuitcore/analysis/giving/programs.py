"""A compacted circuit in a file that runs without circuitcore: a program of torch, or ONNX."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from circuitcore.errors import InputError, UsageError
from circuitcore.machine.state import older_settings_read
from circuitcore.network.compact.module import CompactCircuit, exported

NEEDS = "ONNX needs {0}: pip install 'circuitcore[onnx]'"
IMAGES, ACTIVATION = "images", "activation"  # input and output of the ONNX graph
MOST_BYTES = 2**31 - 1  # of one protobuf message


def program_bytes(module: CompactCircuit) -> bytes:
    """The file that ``torch.export.load`` reads, for any number of images."""
    content = io.BytesIO()
    program = program_of(module)
    with _quiet():
        torch.export.save(program, content)
    return content.getvalue()


def program_in(content: bytes) -> Callable[[Tensor], Tensor]:
    """What such a file computes, as torch loads it."""
    with _quiet():
        found: Any = torch.export.load(io.BytesIO(content)).module()
    return found  # type: ignore[no-any-return]


def require_onnx() -> None:
    """Raise UsageError naming the extra where what writes or runs ONNX is not installed."""
    import importlib.util

    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(NEEDS.format(name))


def onnx_bytes(module: CompactCircuit) -> bytes:
    """The circuit as an ONNX model of ``images`` [N, C, H, W], giving ``activation`` [N].

    Raises UsageError where the extra is not installed, InputError where a layer has no counterpart
    there, or the model is over ONNX's 2 GB.
    """
    require_onnx()
    program = program_of(module)
    with _quiet():
        try:
            found: Any = torch.onnx.export(
                program, input_names=[IMAGES], output_names=[ACTIVATION], dynamo=True, verbose=False
            )
            content: bytes = found.model_proto.SerializeToString()
        except Exception as error:  # of torch's exporter, of many kinds
            raise InputError(f"this circuit cannot be written as ONNX: {_first(error)}") from error
    if len(content) > MOST_BYTES:
        raise InputError("this circuit cannot be written as ONNX: it is over 2 GB")
    return content


def onnx_in(content: bytes) -> Callable[[Tensor], Tensor]:
    """What an ONNX file computes, as onnxruntime runs it on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (found,) = session.run([ACTIVATION], {IMAGES: images.numpy()})
        return torch.from_numpy(found)

    return run


def program_of(module: CompactCircuit) -> torch.export.ExportedProgram:
    """A module as a program of torch for any number of images, on the device where it is.

    Raises InputError where torch cannot trace a layer.
    """
    try:
        with _quiet():
            return exported(module, module.shape)
    except Exception as error:  # of torch's tracer, of many kinds
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"this circuit cannot be written as a program of torch: {said[0]}; "
            "`Circuit.compact` gives it as a module"
        ) from error


def _first(error: BaseException) -> str:
    """The first line of what an exporter's error is at bottom, without its colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub("\x1b\\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """What exporters print and warn of is for those who write them."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(), older_settings_read():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
