"""One ahead-of-time compilation: as an operation lists it, or as a launch asks for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from circuitcore.kernels.launch import Launch

TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8",
    torch.uint8: "u8", torch.uint32: "u32", torch.bool: "i1",
}  # fmt: skip


@dataclass(frozen=True)
class AotCase:
    """One compilation: a kernel with the arguments and options of a real launch.

    ``signature`` maps each argument that is not a constant to its Triton type ("*fp32", "i32");
    ``constexprs`` the constant ones to their values (``None`` for an absent pointer);
    ``divisible`` names the arguments the launch knows to be divisible by 16; ``reason`` says why
    a kernel with a matrix product does without tcgen05 on sm_100, where it does; ``options`` are
    the launch's other compiler options (``enable_fp_fusion``).
    """

    op: str
    kernel: Any
    config: str
    dtype: str
    signature: dict[str, str]
    constexprs: dict[str, object]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ()
    reason: str = ""
    options: dict[str, object] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.kernel.__name__}/{self.config}/{self.dtype}"


def case_of(op: str, record: Launch) -> AotCase:
    """The compilation that Triton's JIT would do for a launch, by its own rules.

    Those (``JITFunction``, "specialization"): an integer that is 1 becomes a constant; one that 16
    divides, and a pointer to an address that 16 divides, is known to be; others are not, but for
    arguments declared ``do_not_specialize``, or ``do_not_specialize_on_alignment``.
    Tensors without storage ("meta") count as aligned.
    """
    parameters = record.kernel.params
    names = [parameter.name for parameter in parameters]
    given = dict(zip(names, record.arguments, strict=False))
    given |= {n: value for n, value in record.options.items() if n in names}
    signature: dict[str, str] = {}
    constants: dict[str, object] = {}
    divisible = []
    dtype = ""
    for parameter in parameters:
        name, value = parameter.name, given[parameter.name]
        free = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (_is_int(value) and value == 1 and not free):
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            if value.is_floating_point() and (not dtype or name == "out"):
                dtype = TYPES[value.dtype]
            if _address(value) % 16 == 0 and not parameter.do_not_specialize_on_alignment:
                divisible.append(name)
        elif _is_int(value):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not free:
                divisible.append(name)
        else:
            signature[name] = "i1" if isinstance(value, bool) else "fp32"
    options = {n: value for n, value in record.options.items() if n not in names}
    warps, stages = options.pop("num_warps", 4), options.pop("num_stages", 3)
    return AotCase(
        op=op,
        kernel=record.kernel,
        config=_named(constants, [n for n in signature if n not in divisible], warps, stages),
        dtype=dtype or "int",
        signature=signature,
        constexprs=constants,
        num_warps=warps,
        num_stages=stages,
        divisible=tuple(divisible),
        options=options,
    )


def distinct(cases: Iterable[AotCase]) -> list[AotCase]:
    """Each compilation once: same kernel, constants, types, divisibility and options."""
    found: dict[str, AotCase] = {}
    for case in cases:
        found.setdefault(repr((case.key, sorted(case.signature.items()), case.options)), case)
    return list(found.values())


def _named(constants: dict[str, object], odd: list[str], warps: int, stages: int) -> str:
    """Constants, then what 16 is not known to divide: ``BM128,RELU1|N|w8s3``."""
    told = ",".join(
        f"{n}{int(v) if isinstance(v, bool) else v}" for n, v in sorted(constants.items())
    )
    return f"{told}|{','.join(odd)}|w{warps}s{stages}"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _address(tensor: torch.Tensor) -> int:
    """Of its first element, modulo the alignment of every allocation where it has none."""
    if tensor.device.type == "meta":
        return int(tensor.storage_offset()) * tensor.element_size()
    return tensor.data_ptr()
