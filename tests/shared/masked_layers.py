"""Masked layers to try kernels on: random problems, how close is right, memory that starts as NaN.

A problem is (x, weight, level, ts, bias); some units lose all weights at once, some inputs are read
at the densest level alone, and the levels ``ts`` come in any order.
"""

import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def linear_problem(n, i, o, levels, seed=0, dtype=torch.float32, per_level=False):
    """x [N, I], or [T, N, I] with ``per_level``; weight [O, I]."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn((levels,) * per_level + (n, i), generator=gen)
    return _problem(gen, x, torch.randn(o, i, generator=gen), levels, dtype)


def conv_problem(
    n=3, i=4, o=6, size=(9, 8), kernel=(3, 3), groups=1, levels=4,
    seed=0, dtype=torch.float32, per_level=False,
):  # fmt: skip
    """x [N, I, *size], or [T, N, I, *size] with ``per_level``; weight [O, I / groups, *kernel]."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn((levels,) * per_level + (n, i, *size), generator=gen)
    weight = torch.randn(o, i // groups, *kernel, generator=gen)
    return _problem(gen, x, weight, levels, dtype)


def _problem(gen, x, weight, levels, dtype):
    level = torch.randint(0, 13, weight.shape, generator=gen).to(torch.uint8)
    level[torch.rand(len(weight), generator=gen) < 0.2] = 0
    level[:, torch.rand(weight.shape[1], generator=gen) < 0.3] = 1
    ts = torch.randint(0, 12, (levels,), generator=gen).tolist()
    bias = torch.randn(len(weight), generator=gen)
    return x.to(dtype), (weight / weight[0].numel() ** 0.5).to(dtype), level, ts, bias.to(dtype)


def chain_problem(n, sizes, seed=0, dtype=torch.float32):
    """x [N, sizes[0]] and layers (weight, level, bias, ReLU follows), one of 13 units biasless."""
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(n, sizes[0], generator=gen).to(dtype)
    layers = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        weight = torch.randn(b, a, generator=gen).to(dtype) / a**0.5
        level = (torch.rand(b, a, generator=gen) ** 2 * 12).to(torch.uint8)
        level[torch.rand(b, generator=gen) < 0.3] = 2
        level[:, torch.rand(a, generator=gen) < 0.3] = 1
        bias = torch.randn(b, generator=gen).to(dtype)
        layers.append((weight, level, bias if b != 13 else None, b != sizes[-1]))
    return x, layers


def close(got, want):
    """Whether ``got`` is the float64 ``want`` within what its dtype allows."""
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= TOLERANCE[got.dtype] * (1 + want.abs().max())


def doubles(x, weight, level, ts, bias):
    """The problem in float64."""
    return x.double(), weight.double(), level, ts, None if bias is None else bias.double()


def poison_new_tensors(monkeypatch):
    """What a launcher allocates starts as NaN: an element it does not write shows."""
    empty = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        new = empty(self, *size, **options)
        return new.fill_(torch.nan) if new.is_floating_point() else new

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def draw(*shape):
    """Normal numbers, the same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def levels_of(*shape):
    """Level bytes 0..4 in turn."""
    return torch.arange(torch.Size(shape).numel()).remainder(5).to(torch.uint8).view(shape)
