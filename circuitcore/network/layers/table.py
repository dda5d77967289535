"""Every kind of step that has no weights to mask, by its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from circuitcore.network.graph import Network, Step
from circuitcore.network.layers.kinds import Layer


def _batchnorm(step: Step, values: Sequence[Tensor], fixed: Sequence[Tensor]) -> Tensor:
    mean, var, scale, shift = fixed
    return F.batch_norm(values[0], mean, var, scale, shift, False, 0.0, step.settings["eps"])


TABLE: dict[str, Layer] = {
    "batchnorm": Layer(_batchnorm, "own"),
    "relu": Layer(lambda s, v, f: torch.relu(v[0]), "own"),
    "relu6": Layer(lambda s, v, f: F.relu6(v[0]), "own"),
    "maxpool": Layer(lambda s, v, f: F.max_pool2d(v[0], **s.settings), "own"),
    "avgpool": Layer(lambda s, v, f: F.avg_pool2d(v[0], **s.settings), "own"),
    "adaptive_avgpool": Layer(
        lambda s, v, f: F.adaptive_avg_pool2d(v[0], s.settings["output_size"]), "own"
    ),
    "flatten": Layer(lambda s, v, f: torch.flatten(v[0], 1), "flatten"),
    "mean": Layer(lambda s, v, f: v[0].mean((2, 3)), "own"),
    "add": Layer(lambda s, v, f: v[0] + v[1], "pairs"),
    "cat": Layer(lambda s, v, f: torch.cat(list(v), 1), "cat"),
}


def apply_step(network: Network, step: Step, inputs: Sequence[Tensor]) -> Tensor:
    """Run one step that has no weights to mask: everything but conv and linear."""
    return TABLE[step.op].run(step, inputs, network.fixed.get(step.name, ()))
