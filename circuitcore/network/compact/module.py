"""A compacted circuit as a module of torch: what is left of the network, and nothing else.

It runs the very pieces that the engine runs (`network.compact.pieces`), from tensors that are
its own parameters and buffers, so that it can be moved, saved, exported and differentiated like any
other module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from circuitcore.network.compact.pieces import Compacted, Piece, run_pieces


class _Part(nn.Module):
    """One piece, its tensors registered: ``weight`` and ``bias`` parameters, all else buffers."""

    index: Tensor
    weight: Tensor | None
    bias: Tensor | None
    extra: Tensor | None

    def __init__(self, piece: Piece) -> None:
        super().__init__()
        self._plain = replace(piece, source=None, weight=None, bias=None, extra=None, fixed=(),
                              columns=(), fill=())  # fmt: skip
        for name in ("weight", "bias"):
            own = getattr(piece, name)
            kept = None if own is None else nn.Parameter(own.clone(), requires_grad=False)
            self.register_parameter(name, kept)
        self._counts = len(piece.fixed), len(piece.columns), len(piece.fill)
        self.register_buffer("index", piece.index.clone())
        self.register_buffer("extra", None if piece.extra is None else piece.extra.clone())
        some = {f"fixed_{k}": each for k, each in enumerate(piece.fixed)}
        some |= {f"columns_{k}": each for k, each in enumerate(piece.columns)}
        for k, fill in enumerate(piece.fill):
            names = (f"blank_{k}", f"places_{k}", f"taken_{k}")
            some |= dict(zip(names, fill, strict=True))
        for name, each in some.items():
            self.register_buffer(name, each.clone())

    def piece(self) -> Piece:
        """The piece with the tensors as they are now."""
        fixed, columns, fill = self._counts
        return replace(
            self._plain,
            index=self.index,
            weight=self.weight,
            bias=self.bias,
            extra=self.extra,
            fixed=tuple(getattr(self, f"fixed_{k}") for k in range(fixed)),
            columns=tuple(getattr(self, f"columns_{k}") for k in range(columns)),
            fill=tuple(
                (getattr(self, f"blank_{k}"), getattr(self, f"places_{k}"),
                 getattr(self, f"taken_{k}"))
                for k in range(fill)
            ),
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The operation and the channels that are left of it."""
        return f"{self._plain.step.op}, {len(self.index)} channels"


class CompactCircuit(nn.Module):
    """One circuit: images [N, C, H, W] as the network takes them -> target activations [N].

    ``forward`` gives the pruned network's target activation plus the circuit's bias, up to the
    order of summation.  ``shape``: the (C, H, W) that it was compacted for, and the only one it
    takes: zero padding of constant maps depends on it.  ``multiply_adds``: of one image.  Where no
    image changes the result ``constant`` [1] is all there is.  In eval mode always: it has no layer
    that differs in training.
    """

    constant: Tensor | None
    bias: Tensor

    def __init__(self, found: Compacted, bias: float, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.multiply_adds = found.multiply_adds
        some = next(iter(found.network.weights.values()))
        self.parts = nn.ModuleDict()
        for piece in found.pieces if found.constant is None else ():
            self.parts[piece.step.name.replace(".", "_")] = _Part(piece)
        constant = None if found.constant is None else found.constant[:1].clone()
        self.register_buffer("constant", constant)
        self.register_buffer("bias", some.new_tensor([bias]))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Raises ValueError for images of another shape."""
        if tuple(images.shape[1:]) != self.shape:
            sides = ", ".join(map(str, self.shape))
            raise ValueError(f"images are [N, {sides}] here, not {list(images.shape)}")
        if self.constant is not None:
            return (self.constant + self.bias).expand(images.shape[0])
        pieces = [part.piece() for part in self.parts.values() if isinstance(part, _Part)]
        return run_pieces(pieces, {"input": images}) + self.bias

    def extra_repr(self) -> str:
        """What it takes, what it costs."""
        return (
            f"images [N, {', '.join(map(str, self.shape))}], {self.multiply_adds:,} multiply-adds"
        )


def exported(module: nn.Module, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """A module of images [N, ``shape``] as a program that torch alone loads and runs, of any N.

    Traced with two images of zeros in the precision of its own tensors; parameters and buffers are
    shared with the module.  Raises what `torch.export.export` does where it cannot be traced.
    """
    some = next(t for t in [*module.parameters(), *module.buffers()] if t.is_floating_point())
    images = torch.zeros(2, *shape, dtype=some.dtype, device=some.device)
    number = torch.export.Dim("N", min=1)
    with torch.no_grad():
        return torch.export.export(module, (images,), dynamic_shapes=({0: number},))
