"""Launches that were recorded (`kernels.launch.Launch`), compiled as they would be on a device."""

from circuitcore.kernels.aot.budget import unsound
from circuitcore.kernels.aot.case import case_of, distinct
from circuitcore.kernels.aot.compile import compile_case


def compiled(launches, arch, op="recorded"):
    """One `CompiledKernel` for each distinct compilation that ``launches`` ask for on ``arch``."""
    return [compile_case(case, arch) for case in distinct(case_of(op, one) for one in launches)]


def faults_of(launches, arch):
    """{compilation: what it does that no kernel may}; empty where all is well."""
    found = {record.key: unsound(record) for record in compiled(launches, arch)}
    return {key: faults for key, faults in found.items() if faults}
