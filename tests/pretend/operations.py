"""Every operation on a pretended device: checked as CUDA would, counted, run on the CPU's numbers.

Factories (``torch.empty(..., device="cuda")`` and all that is made of it) arrive through three
kernels registered for the CUDA backend, everything else through the tensors themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pretend.counts import site
from pretend.ghosts import LARGE, arrived, faded, ghostly, is_ghost, scalar
from pretend.state import CAPTURING, State, current_device, state, synchronised
from pretend.tensors import Block, Pretended, elements, tensors_in
from torch.multiprocessing.reductions import StorageWeakRef

aten = torch.ops.aten
NO_KERNEL = {
    "detach", "alias", "lift_fresh", "empty", "empty_like", "empty_strided", "empty_permuted",
    "new_empty", "new_empty_strided", "_unsafe_view", "is_same_size", "record_stream", "set_",
    "_local_scalar_dense", "detach_", "view", "_reshape_alias", "lift",
}  # fmt: skip
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "histc", "equal", "repeat_interleave", "nonzero_static",
}  # fmt: skip
COPIES = {"copy_", "_to_copy"}
MIXES = {"index", "index_put_", "_index_put_impl_", *COPIES}  # of CPU tensors and others
MIXED = (
    "Expected all tensors to be on the same device, but found at least two devices, {} and {}! "
    "(in {}, {})"
)


def handle(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """One operation, as `torch.Tensor.__torch_dispatch__` gets it."""
    space, _, name = func._schema.name.partition("::")
    if space == "circuitcore":
        from pretend.answers import run_custom

        return run_custom(func, args, kwargs)
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    tensors = tensors_in([*args, *kwargs.values()], [])
    index, in_graph = checked(name, tensors)
    wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if wanted is not None and wanted.type == "meta":  # shapes are asked for, nothing of a device
        return func(*elements(args), **kwargs)
    if wanted is not None and wanted.type == "cuda":
        index = _place(wanted)
    leaves = wanted is not None and wanted.type == "cpu"
    if name in COPIES:
        _copied(name, args, kwargs, wanted)
    elif name in WAITS or _boolean_index(name, args):
        synchronised(name)
    if name not in NO_KERNEL and not leaves and not _is_view(func) and not _crosses(name, args):
        count_launch(name)
    options = {
        key: torch.device("cpu") if key == "device" and value is not None else elements(value)
        for key, value in kwargs.items()
        if key != "pin_memory"
    }
    plain = elements(args)
    if ghostly() and (left := _of_ghosts(name, func, plain, options, leaves)) is not None:
        found = left[0]
    else:
        found = execute(CUDNN.get(name, func), plain, options)
    if leaves:
        if kwargs.get("non_blocking"):
            pin(found)
        return found
    return _wrapped(found, tensors, index, in_graph and name != "detach" or _joins(tensors))


def checked(name: str, tensors: Sequence[torch.Tensor]) -> tuple[int, bool]:
    """The one device that the tensors are on, and whether one takes part in autograd.

    Raises RuntimeError, as torch does, where they are on two; a CPU tensor without dimensions may
    meet any.
    """
    index, in_graph = None, False
    for tensor in tensors:
        if isinstance(tensor, Pretended):
            if index is not None and tensor.index != index and name not in COPIES:
                raise RuntimeError(MIXED.format(f"cuda:{index}", tensor.device, name, site()))
            index = tensor.index if index is None else index
            in_graph |= tensor.in_graph
        elif tensor.device.type == "meta":
            raise RuntimeError(f"a tensor on meta meets a pretended one ({name}, {site()})")
    for tensor in tensors:
        outside = not isinstance(tensor, Pretended) and tensor.dim() > 0 and name not in MIXES
        if outside and index is not None:
            raise RuntimeError(MIXED.format(f"cuda:{index}", tensor.device, name, site()))
    return (current_device() if index is None else index), in_graph


def _of_ghosts(
    name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any], leaves: bool
) -> tuple[Any] | None:
    """What an operation gives where a ghost has part in it, or comes of it; None where none does.

    A graph need not know of it: there is nothing to run again.
    """
    tensors = tensors_in([*args, *kwargs.values()], [])
    if name == "_local_scalar_dense" and is_ghost(tensors[0]):
        return (scalar(tensors[0]),)
    if name in COPIES and (leaves or name == "copy_" and not is_ghost(tensors[0])):
        if not is_ghost(tensors[-1]):
            return None
        found = arrived(tensors[-1], kwargs.get("dtype") or tensors[0].dtype)
        return (tensors[0].copy_(found) if name == "copy_" else found,)
    made = name in COPIES or name.startswith("new_") or name.endswith("_like")
    large = made and tensors[0].numel() >= LARGE and tensors[0].is_floating_point()
    pixels = name == "_to_copy" and tensors[0].dim() == 4 and tensors[0].numel() >= LARGE
    if not any(map(is_ghost, tensors)) and not large and not pixels:
        return None
    found = func(*faded(args), **{key: faded(value) for key, value in kwargs.items()})
    if made and name not in COPIES and not found.is_floating_point():  # bytes and counts are real
        whole = torch.zeros(found.shape, dtype=found.dtype)
        return (whole.fill_(1) if "ones" in name else whole,)
    written = [a for a in tensors if is_ghost(a)] if func._schema.is_mutable else []
    if isinstance(found, torch.Tensor) and written and written[0].shape == found.shape:
        return (written[0],)
    return (found,)


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Any:
    """cuDNN's in torch's own: no device, no cuDNN."""
    found = aten.native_batch_norm.default(x, weight, bias, mean, var, training, momentum, eps)
    return (*found, torch.empty(0, dtype=torch.uint8))


CUDNN = {"cudnn_batch_norm": _batch_norm}


def execute(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run a function on the CPU's tensors; inside a capture it is recorded and not yet run.

    What a captured operation gives is NaN (or 0) until a replay, as on a device.
    """
    graph = CAPTURING.get()
    if graph is None:
        return func(*args, **kwargs)
    return graph.record(func, args, kwargs)


def count_launch(name: str) -> None:
    """A kernel of torch's own."""
    counts = state().counts
    (counts.captured if CAPTURING.get() is not None else counts.torch)[name, site()] += 1


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, its storage taken for pinned from now on."""
    storage = tensor.untyped_storage()
    state().pinned[storage._cdata] = StorageWeakRef(storage)
    return tensor


def pinned(tensor: torch.Tensor) -> bool:
    """Whether a CPU tensor lies in memory that was pinned."""
    found = state().pinned.get(tensor.untyped_storage()._cdata)
    return found is not None and not found.expired()


def wrap(elem: torch.Tensor, index: int, in_graph: bool = False) -> Pretended:
    """A CPU tensor as a new one on device ``index``."""
    now = state()
    if not 0 <= index < now.devices:
        raise RuntimeError(f"CUDA error: invalid device ordinal (cuda:{index})")
    now.touched.add(index)
    block = Block(now.memory, index, elem.untyped_storage().nbytes())
    return Pretended(elem, index, block, in_graph)


def _joins(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether what comes of these takes part in autograd though they did not."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _wrapped(found: Any, tensors: Sequence[torch.Tensor], index: int, in_graph: bool) -> Any:
    """Results on the device: an argument written to is itself, a view shares its block."""
    if isinstance(found, list | tuple):
        return type(found)(_wrapped(each, tensors, index, in_graph) for each in found)
    if not isinstance(found, torch.Tensor):
        return found
    storage = found.untyped_storage()._cdata
    for tensor in tensors:
        if not isinstance(tensor, Pretended):
            if tensor is found:
                return tensor
            continue
        if tensor.elem is found:
            if found.shape != tensor.shape or found.stride() != tensor.stride():
                _restride(tensor, found)
            return tensor
        if tensor.elem.untyped_storage()._cdata == storage:
            with torch.inference_mode(tensor.is_inference()):  # a view is what it is a view of
                return Pretended(found, index, tensor.block, in_graph)
    return wrap(found, index, in_graph)


def _restride(tensor: Pretended, found: torch.Tensor) -> None:
    """Have a wrapper say the sizes and strides that an operation in place gave what it holds."""
    if found.numel() != tensor.numel():
        raise NotImplementedError(f"an operation in place that changes the size ({site()})")
    python = torch._C.DispatchKeySet(torch._C.DispatchKey.Python)
    with torch._C._ExcludeDispatchKeyGuard(python):
        aten.as_strided_.default(tensor, found.size(), found.stride(), found.storage_offset())


def _is_view(func: Any) -> bool:
    """Whether the operation only gives another view of an argument."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _crosses(name: str, args: Sequence[Any]) -> bool:
    return name == "copy_" and not (
        isinstance(args[0], Pretended) and isinstance(args[1], Pretended)
    )


def _boolean_index(name: str, args: Sequence[Any]) -> bool:
    """Whether indices have to be found on the host first (a fill under one mask needs none)."""
    if name not in ("index", "index_put_", "_index_put_impl_", "index_put"):
        return False
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    fills = name != "index" and len(masks) == 1 == len(args[1]) and args[2].numel() == 1
    return bool(masks) and not (fills and not (len(args) > 3 and args[3]))


def _copied(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], wanted: torch.device | None
) -> None:
    """Count a copy between host and device; only from and to pinned memory it need not wait."""
    source = args[1] if name == "copy_" else args[0]
    asked = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
    counts, here = state().counts, site()
    if name == "copy_":
        size = args[0].numel() * args[0].element_size()
        into = isinstance(args[0], Pretended)
        host = source if into else args[0]
    else:
        dtype = kwargs.get("dtype") or source.dtype
        size = source.numel() * dtype.itemsize
        into = wanted.type == "cuda" if wanted is not None else isinstance(source, Pretended)
        host = source if into else None
    if into == isinstance(source, Pretended):
        return  # within a device, or between two
    (counts.to_device if into else counts.to_host)[here] += size
    counts.copies[here] += 1
    if into and CAPTURING.get() is not None:  # from memory that is gone at a replay
        raise RuntimeError(f"capturing: a copy from the host is read anew by every replay ({here})")
    pageable = host is not None and not pinned(host) and not (into and host.dim() == 0)
    if pageable and CAPTURING.get() is not None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
    if not asked or (pageable and host is not None):
        synchronised("copy to the device" if into else "copy to the host")


class Factories:
    """The three kernels of the CUDA backend that make tensors; `close` takes them back."""

    def __init__(self, owner: State) -> None:
        self.library = torch.library.Library("aten", "IMPL", "CUDA")  # noqa: TOR901
        for name, kernel in (
            ("empty.memory_format", _empty), ("empty_strided", _empty_strided), ("copy_", _copy),
        ):  # fmt: skip
            self.library.impl(name, kernel, allow_override=True)

    def close(self) -> None:
        """Forget them."""
        self.library._destroy()


def _place(device: Any) -> int:
    index = torch.device(device).index
    return current_device() if index is None else index


def _substance(size: Any, dtype: Any) -> str:
    faint = dtype is None or dtype.is_floating_point or len(size) == 4
    return "meta" if ghostly() and math.prod(size) >= LARGE and faint else "cpu"


def _empty(size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None,
           pin_memory: Any = None, memory_format: Any = None) -> Pretended:  # fmt: skip
    form = memory_format or torch.contiguous_format
    made = torch.empty(size, dtype=dtype, memory_format=form, device=_substance(size, dtype))
    return wrap(made, _place(device))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, layout: Any = None,
                   device: Any = None, pin_memory: Any = None) -> Pretended:  # fmt: skip
    made = torch.empty_strided(size, stride, dtype=dtype, device=_substance(size, dtype))
    return wrap(made, _place(device))


def _copy(into: Any, source: Any, non_blocking: bool = False) -> Any:
    return handle(aten.copy_.default, (into, source, non_blocking), {})
