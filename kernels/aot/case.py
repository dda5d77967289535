"""One ahead-of-time compilation, as every operation lists its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
