"""Chunks: what counts as memory that ran out, and one loading stream a device."""

import pytest
import torch
from pretend.device import pretended

from circuitcore.errors import DeviceError
from circuitcore.machine.chunks import Ahead, in_chunks, loading_stream

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("HIP out of memory. Tried to allocate 2 GiB"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("miopenStatusAllocFailed"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]
VAGUE = [
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("miopenStatusInternalError"),
]


def sizes(error, most=3):
    """The sizes of chunks that were done where more than ``most`` images raise ``error``."""
    done = []

    def work(part):
        if part.stop - part.start > most:
            raise error
        done.append(part.stop - part.start)

    in_chunks(10, 8, work)
    return done


@pytest.mark.parametrize("error", FULL, ids=str)
def test_chunks_get_smaller_where_memory_ran_out(error):
    assert sizes(error) == [2] * 5
    with pytest.raises(DeviceError, match="smaller --memory"):
        sizes(error, most=0)


@pytest.mark.parametrize("error", VAGUE, ids=str)
def test_a_vague_error_is_memory_only_where_there_is_none(error):
    with raises_it(error):
        sizes(error)
    with pretended(memory=10**9) as cuda:
        small = torch.zeros(10, device="cuda:1")
        with raises_it(error):
            sizes(error)
        large = torch.zeros(6 * 10**8, dtype=torch.uint8, device="cuda:1")
        assert sizes(error) == [2] * 5
        assert cuda.touched == {1}, "the other device is not even asked"
        del small, large


def raises_it(error):
    return pytest.raises(RuntimeError, match=str(error).partition(" when")[0])


def test_one_loading_stream_a_device(monkeypatch):
    made = []
    with pretended() as cuda:
        stream = torch.cuda.Stream
        monkeypatch.setattr(
            torch.cuda, "Stream", lambda device: made.append(device) or stream(device)
        )
        loading_stream.cache_clear()
        device = torch.device("cuda:1")
        for _ in range(3):
            with Ahead(lambda part: {"x": torch.ones(2, device=device)}, 4, device) as chunks:
                assert chunks.take(slice(0, 2))["x"].device == device
        assert cuda.touched == {1}
    loading_stream.cache_clear()
    assert made == [torch.device("cuda:1")]
