"""One mask of a chain of Linear layers as smaller dense layers, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from circuitcore.kernels.compilers import use_torch_threads
from circuitcore.kernels.masked_linear import cpu_passes as cpu
from circuitcore.kernels.masked_linear.cpu import Layer, Survey, survey_chain
from circuitcore.kernels.masked_linear.reference import centred

Compact = list[tuple[torch.Tensor, torch.Tensor | None]]


def compacted_chain(
    layers: Sequence[Layer],
    t: int,
    survey: Survey | None = None,
    centres: Sequence[torch.Tensor] | None = None,
) -> Compact | None:
    """(weight, bias) of the units that a mask ``level > t`` leaves to compute, layer by layer.

    The first layer keeps all its columns; units that do not vary are folded into the next bias,
    and so are ``centres`` [I], taken off each layer's inputs.
    None where the output does not vary.  Cost: two passes over the level bytes (none with the
    ``survey`` of these layers), one over the surviving rows.
    """
    use_torch_threads()
    survey = survey or survey_chain(layers)
    out: Compact = []
    columns = np.arange(layers[0][0].shape[1])
    before: torch.Tensor | None = None  # bias of the layer before, all its units
    for k, (weight, level, bias, _) in enumerate(layers):
        rows = survey.layers[k].rows(t)
        if not rows.size:
            return None
        part = None if bias is None else bias[torch.from_numpy(rows)]
        units = survey.layers[k - 1].constants(t) if k else np.empty(0, np.int64)
        if units.size and (before is not None or centres is not None):
            some = torch.from_numpy(units)
            constant = weight.new_zeros(units.size) if before is None else before[some]
            constant = torch.relu(constant) if layers[k - 1][3] else constant
            constant = constant if centres is None else centred(constant, centres[k][some])
            reads = _gathered(weight, level, t, rows, units)
            part = reads @ constant if part is None else torch.addmv(part, reads, constant)
        left = _gathered(weight, level, t, rows, columns)
        if centres is not None:
            taken = left.to(centres[k].dtype) @ centres[k][torch.from_numpy(columns)]
            part = (-taken if part is None else part - taken).to(weight.dtype)
        out.append((left, part))
        columns, before = rows, bias
    return out


def _gathered(
    weight: torch.Tensor, level: torch.Tensor, t: int, rows: np.ndarray, columns: np.ndarray
) -> torch.Tensor:
    out = torch.empty((rows.size, columns.size), dtype=weight.dtype)
    weight, level = weight.contiguous(), level.contiguous()
    cpu.gather_dense(cpu.array(weight), level.numpy(), t, rows, columns, cpu.array(out))
    return out
