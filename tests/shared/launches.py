"""Launches that were recorded, compiled as they would be on a device.

Recorded by `kernels.launch.recorded`, or taken down on a pretended device (`pretend.counts`).
"""

import torch

from circuitcore.kernels.aot.budget import unsound
from circuitcore.kernels.aot.case import case_of, distinct
from circuitcore.kernels.aot.compile import compile_case, modules
from circuitcore.kernels.launch import Launch


def as_recorded(taken):
    """A `pretend.counts.Launch` as the launch it was; tensors without storage, aligned or not."""
    kernels = {
        name: value
        for module in modules()
        for name, value in vars(module).items()
        if hasattr(value, "params")
    }
    kernel = kernels[taken.kernel]
    values = dict(taken.integers) | dict.fromkeys(taken.floats, 0.5)
    for name, (dtype, aligned) in taken.pointers.items():
        two = torch.empty(2, dtype=getattr(torch, dtype), device="meta")
        values[name] = two[int(not aligned) :]
    plain = [p.name for p in kernel.params if not p.is_constexpr]
    arguments = tuple(values.get(name) for name in plain)  # what is not there was None
    return Launch(kernel, taken.grid, arguments, dict(taken.constants))


def cases_of(launches):
    """Each compilation that ``launches`` ask for, once."""
    return distinct(case_of("recorded", record) for record in launches)


def faults_of(launches, arch):
    """{compilation: what it does that no kernel may}; empty where all is well."""
    found = {case.key: unsound(compile_case(case, arch)) for case in cases_of(launches)}
    return {key: faults for key, faults in found.items() if faults}
