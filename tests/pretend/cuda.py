"""`torch.cuda` of pretended devices: guards, streams, events, memory and what devices are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from pretend.graphs import Graph, capture
from pretend.operations import count_launch, pin, pinned, wrap
from pretend.state import CAPTURING, THREAD, current_device, state, synchronised
from pretend.tensors import Pretended, tensors_in

FACTORIES = (
    "empty", "empty_like", "empty_strided", "zeros", "zeros_like", "ones", "ones_like", "full",
    "full_like", "tensor", "as_tensor", "rand", "randn",
)  # fmt: skip

COUNTED = ("arange", "linspace", "logspace", "randperm", "eye", "tril_indices", "triu_indices")


def index_of(device: Any = None) -> int:
    """A device as torch.cuda's functions take it.  RuntimeError for one that is not there."""
    if device is None:
        return current_device()
    if not isinstance(device, int):
        found = torch.device(device)
        if found.type != "cuda":
            raise ValueError(f"Expected a cuda device, but got: {device}")
        device = current_device() if found.index is None else found.index
    if not 0 <= device < state().devices:
        raise RuntimeError("CUDA error: invalid device ordinal")
    return int(device)


class Guard:
    """`torch.cuda.device`."""

    def __init__(self, device: Any) -> None:
        self.index = index_of(device)

    def __enter__(self) -> None:
        self.before, THREAD.device = THREAD.device, self.index

    def __exit__(self, *error: object) -> None:
        THREAD.device = self.before


class Stream:
    """`torch.cuda.Stream`: work is done at once, so that only waits of the host are counted."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = torch.device("cuda", index_of(device))
        state().touched.add(self.device.index)

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        synchronised("synchronise a stream")

    def __enter__(self) -> Stream:
        self._entered = OnStream(self)
        self._entered.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.__exit__(*error)


class OnStream:
    """`torch.cuda.stream`: the stream is current, and so is its device; None is nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            index = self.stream.device.index
            self.before = THREAD.device, THREAD.streams
            THREAD.device, THREAD.streams = index, {**THREAD.streams, index: self.stream}

    def __exit__(self, *error: object) -> None:
        if self.stream is not None:
            THREAD.device, THREAD.streams = self.before


class Event:
    """`torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.device: torch.device | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.device = (stream or current_stream()).device

    def wait(self, stream: Stream | None = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        synchronised("synchronise an event")

    def elapsed_time(self, end: Event) -> float:
        if self.device is None or self.device != end.device:
            raise RuntimeError("both events must be recorded, on one device")
        return 1.0


def current_stream(device: Any = None) -> Stream:
    index = index_of(device)
    return THREAD.streams.get(index) or Stream(index)


def synchronize(device: Any = None) -> None:
    state().touched.add(index_of(device))
    synchronised("synchronise")


def set_device(device: Any) -> None:
    THREAD.device = index_of(device)


def properties(device: Any = None) -> SimpleNamespace:
    """Those of the device that is pretended."""
    now, _ = state(), index_of(device)
    return SimpleNamespace(
        major=now.capability[0], minor=now.capability[1], name=now.name, warp_size=32,
        multi_processor_count=now.multiprocessors, total_memory=now.memory.total,
        gcnArchName="", L2_cache_size=50 << 20, shared_memory_per_block_optin=232448,
    )  # fmt: skip


def free(device: Any = None) -> tuple[int, int]:
    now = state()
    now.touched.add(index_of(device))
    return now.memory.total - now.memory.now[index_of(device)], now.memory.total


def reset_peak(device: Any = None) -> None:
    memory, index = state().memory, index_of(device)
    memory.peak[index] = memory.now[index]


def set_sync_debug_mode(mode: str | int) -> None:
    """Whether a wait of the host is an error."""
    state().strict = mode in ("error", 2)


def limit_memory(fraction: float, device: Any = None) -> None:
    """So much of the memory can be allocated; what is said to be free stays as it was."""
    memory = state().memory
    memory.limit[index_of(device)] = int(fraction * memory.total)


def to_pinned(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    """`Tensor.pin_memory`: a copy on the host."""
    return pin(tensor.clone(memory_format=torch.preserve_format))


def made_pinned(factory: Any) -> Any:
    """A factory of torch that takes ``pin_memory``."""

    def make(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") is not None:
            kwargs["device"] = placed(kwargs["device"])
        made: torch.Tensor = factory(*args, **kwargs)
        return pin(made) if pin_memory else made

    return make


def made_here(factory: Any) -> Any:
    """A factory whose C++ code would make an empty tensor first and resize it."""

    def make(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        made: torch.Tensor = factory(*args, **kwargs)
        place = torch.device("cpu" if device is None else placed(device))
        if place.type != "cuda":
            return made.to(place)
        count_launch(factory.__name__)
        return wrap(made, place.index)

    return make


def placed(device: Any) -> Any:
    """``cuda`` with the number of the current device; anything else as it is."""
    if isinstance(device, str | torch.device) and str(device) == "cuda":
        return torch.device("cuda", current_device())
    return device


def moved(to: Any) -> Any:
    """`Tensor.to`, which would ask the C++ code for the current device."""

    def move(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        kwargs = {name: placed(value) for name, value in kwargs.items()}
        result: torch.Tensor = to(tensor, *map(placed, args), **kwargs)
        return result

    return move


def to_cuda(tensor: torch.Tensor, device: Any = None, **options: Any) -> torch.Tensor:
    """`Tensor.cuda`."""
    return tensor.to(torch.device("cuda", index_of(device)), **options)


def on_one_thread(function: Any) -> Any:
    """`torch.autograd.grad` or ``backward`` in this thread: there are no threads of the device.

    Gradients are tensors of the device like any other again.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        before = torch._C._is_multithreading_enabled()
        torch._C._set_multithreading_enabled(False)
        try:
            found = function(*args, **kwargs)
        finally:
            torch._C._set_multithreading_enabled(before)
        if not any(isinstance(t, Pretended) for t in tensors_in(found, [])):
            return found
        return tuple(
            Pretended(t.elem, t.index, t.block) if isinstance(t, Pretended) else t for t in found
        )

    return run


def replacements() -> list[tuple[Any, str, Any]]:
    """(owner, name, what stands there while devices are pretended)."""
    memory = state().memory
    cuda = {
        "is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": lambda: None,
        "init": lambda: None, "device_count": lambda: state().devices, "device": Guard,
        "current_device": current_device, "set_device": set_device, "Stream": Stream,
        "Event": Event, "stream": OnStream, "current_stream": current_stream,
        "default_stream": lambda device=None: Stream(device), "CUDAGraph": Graph,
        "graph": capture, "graph_pool_handle": lambda: (0, 0),
        "is_current_stream_capturing": lambda: CAPTURING.get() is not None,
        "synchronize": synchronize,
        "empty_cache": lambda: state().touched.add(current_device()),
        "ipc_collect": lambda: None, "mem_get_info": free,
        "get_device_name": lambda device=None: properties(device).name,
        "get_device_properties": properties,
        "get_device_capability": lambda device=None: (
            properties(device).major, properties(device).minor
        ),
        "memory_allocated": lambda device=None: memory.now[index_of(device)],
        "memory_reserved": lambda device=None: memory.now[index_of(device)],
        "max_memory_allocated": lambda device=None: memory.peak[index_of(device)],
        "max_memory_reserved": lambda device=None: memory.peak[index_of(device)],
        "reset_peak_memory_stats": reset_peak, "manual_seed": lambda seed: None,
        "set_sync_debug_mode": set_sync_debug_mode,
        "set_per_process_memory_fraction": limit_memory,
        "manual_seed_all": lambda seed: None, "is_bf16_supported": lambda *_, **__: True,
    }  # fmt: skip
    found: list[tuple[Any, str, Any]] = [(torch.cuda, name, it) for name, it in cuda.items()]
    for name in FACTORIES:
        found.append((torch, name, made_pinned(getattr(torch, name))))
    for name in COUNTED:
        found.append((torch, name, made_here(getattr(torch, name))))
    for name in ("grad", "backward"):
        found.append((torch.autograd, name, on_one_thread(getattr(torch.autograd, name))))
    methods = {
        "pin_memory": to_pinned, "is_pinned": lambda tensor, *_: pinned(tensor),
        "to": moved(torch.Tensor.to), "cuda": to_cuda,
    }  # fmt: skip
    return found + [(torch.Tensor, name, method) for name, method in methods.items()]
