"""The pretended device itself: it refuses what CUDA refuses and counts what costs there."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretend.device import no_sync, pretended

from circuitcore.kernels.masked_linear.operation import masked_linear
from circuitcore.kernels.masked_linear.reference import masked_linear_reference
from circuitcore.kernels.score_linear.operation import score_linear


@pytest.fixture
def cuda():
    with pretended() as made:
        yield made


def test_tensors_say_where_they_are(cuda):
    a = torch.zeros(3, 4, device="cuda:1")
    assert a.device == torch.device("cuda:1") and a.is_cuda
    assert a.new_ones(2).device == a[1:, ::2].device == torch.relu(a).device == a.device
    assert torch.arange(3).to("cuda").device == torch.device("cuda:0")
    with torch.cuda.device(1):
        assert torch.tensor([1.0], device="cuda").device.index == 1
    assert a.cpu().device.type == "cpu" and type(a.cpu()) is torch.Tensor


@pytest.mark.parametrize("where", ["cpu", "cuda:1"])
def test_devices_do_not_mix(cuda, where):
    a = torch.ones(3, device="cuda:0")
    b = torch.ones(3, device=where)
    for mix in (lambda: a + b, lambda: torch.where(b > 0, a, a), lambda: torch.cat([a, b]),
                lambda: a.add_(b), lambda: F.linear(a[None], b[None])):  # fmt: skip
        with pytest.raises(RuntimeError, match="two devices"):
            mix()
    assert (a + torch.tensor(2.0)).tolist() == [3, 3, 3]
    assert a.to(where).device == torch.device(where)


def test_numpy_fails(cuda):
    a = torch.ones(3, device="cuda")
    for wrong in (a.numpy, lambda: np.asarray(a), lambda: np.add(a, 1)):
        with pytest.raises(TypeError, match="numpy"):
            wrong()


def test_numbers_are_right(cuda):
    x = torch.randn(4, 5)
    a = x.cuda()
    a[1:3, ::2] = 7
    x[1:3, ::2] = 7
    a.view(-1)[torch.tensor([0, 3], device="cuda")] = a.new_tensor([1.0, 2.0])
    x.view(-1)[[0, 3]] = torch.tensor([1.0, 2.0])
    out = torch.empty(4, device="cuda")
    torch.sum(a, 1, out=out)
    assert torch.equal(a.cpu(), x) and torch.equal(out.cpu(), x.sum(1))
    assert torch.equal(torch.where(a > 0, a, 0).T.contiguous().cpu(), torch.where(x > 0, x, 0).T)
    assert torch.equal(a[a > 0].sort().values.cpu(), x[x > 0].sort().values)
    with torch.inference_mode():
        assert torch.equal(F.relu_(F.linear(a, a)).cpu(), F.relu(F.linear(x, x)))


def test_autograd(cuda):
    x, w, v = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(5, 64)

    def gradients(device):
        leaf = x.to(device).detach().requires_grad_()
        record = []
        record.append(F.conv2d(leaf, w.to(device), None, 2, 1))
        pooled = F.max_pool2d(F.relu(record[0]), 2)
        record.append(
            F.linear(torch.cat([pooled, pooled], 1).flatten(1)[:, ::2], v[:, :16].to(device))
        )
        out = F.relu(record[1])[:, 1].square().sum() + record[0].mean()
        return torch.autograd.grad(out, record)

    for here, there in zip(gradients("cuda:1"), gradients("cpu"), strict=True):
        assert here.device == torch.device("cuda:1") and not here.requires_grad
        assert torch.equal(here.cpu(), there)
        assert here[torch.tensor([0])].shape[0] == 1


def test_waits_are_counted(cuda):
    a = torch.arange(6.0).cuda()
    cuda.counts.clear()
    waits = [
        a.sum().item, a.tolist, a.cpu, (a > 2).nonzero, lambda: a[a > 2],
        lambda: bool((a > 2).all()),
        lambda: torch.bincount(a.long()), lambda: torch.unique(a), lambda: torch.ones(2).cuda(),
        lambda: torch.tensor([1.0], device="cuda"), torch.cuda.synchronize,
        lambda: a.new_tensor([1.0, 2.0]),
    ]  # fmt: skip
    for number, wait in enumerate(waits, 1):
        wait()
        assert cuda.counts.syncs.total() == number, wait
        with pytest.raises(RuntimeError, match="synchronizing"), no_sync():
            wait()
        cuda.counts.syncs.subtract(list(cuda.counts.syncs.elements())[-1:])
    assert all("test_device.py" in place for _, place in cuda.counts.syncs)


def test_pinned_copies_do_not_wait(cuda):
    staging = torch.empty(4, 2, pin_memory=True)
    assert staging.is_pinned() and staging[1:].is_pinned() and not torch.ones(2).is_pinned()
    with no_sync():
        a = staging.to("cuda", non_blocking=True)
        b = torch.ones(3).pin_memory().to("cuda", torch.float16, non_blocking=True)
        back = a.to("cpu", non_blocking=True)
        staging.copy_(a, non_blocking=True)
        a[a.new_ones(4, dtype=torch.bool)] = 0  # a fill under a mask
    assert back.is_pinned()
    assert cuda.counts.to_device.total() == 32 + 6 and cuda.counts.to_host.total() == 64
    assert b.dtype == torch.float16
    with pytest.raises(RuntimeError, match="synchronizing"), no_sync():
        torch.ones(3).to("cuda", non_blocking=True)  # pageable memory


def test_launches_are_counted_and_views_are_none(cuda):
    a = torch.ones(4, 4, device="cuda")
    cuda.counts.clear()
    a.view(2, 8)[1].unsqueeze(0).expand(3, -1).detach()
    assert cuda.counts.torch.total() == 0
    F.linear(a, a, a[0]).relu_().contiguous().sum()
    assert [name for name, _ in cuda.counts.torch] == ["addmm", "relu_", "sum"]


def test_memory_is_that_of_live_tensors():
    with pretended(memory=1000) as cuda:
        a = torch.zeros(100, device="cuda:1")
        view = a[50:]
        assert torch.cuda.memory_allocated(1) == 400 and torch.cuda.memory_allocated(0) == 0
        del a
        assert torch.cuda.memory_allocated(1) == 400
        del view
        assert torch.cuda.memory_allocated(1) == 0 and torch.cuda.max_memory_allocated(1) == 400
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            torch.zeros(1000, device="cuda:0")
        assert cuda.memory.now.total() == 0


def test_a_graph_reads_its_static_inputs_again(cuda):
    x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = x[1:] * 2
        total += 1
        side = torch.relu(doubled)
    assert doubled.isnan().all() and total.tolist() == [0, 0, 0]
    assert cuda.counts.captured.total() == 3
    for value in (5.0, -6.0):
        x.fill_(value)
        graph.replay()
        assert doubled.tolist() == [2 * value] * 2 and side.tolist() == [max(2 * value, 0)] * 2
    assert total.tolist() == [2, 2, 2]
    assert (cuda.counts.captures, cuda.counts.replays, cuda.counts.replayed) == (1, 2, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: a.sum().item(),
        lambda a: a.cpu(),
        lambda a: a.copy_(torch.ones(3)),
        lambda a: torch.tensor([1.0], device="cuda"),
        lambda a: torch.cuda.synchronize(),
    ],
)
def test_a_capture_refuses_to_wait(cuda, wrong):
    a = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        wrong(a)


def test_everything_is_put_back():
    names = [*vars(torch.cuda)]
    before = {n: getattr(torch.cuda, n) for n in names}
    with pretended():
        assert torch.cuda.is_available()
        left = torch.ones(3, device="cuda")
    assert {n: getattr(torch.cuda, n) for n in names} == before
    assert not torch.cuda.is_available() and not torch.ones(2).is_pinned()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="gone with its test"):
        left + 1


def linear(where, **options):
    """A masked Linear layer on a device, by its Triton kernel."""
    x, weight = (torch.randn(n, 32, device=where, dtype=torch.bfloat16) for n in (3, 5))
    level = torch.arange(160, dtype=torch.uint8).view(5, 32).to(where)
    call = {"relu": True, "impl": "triton", **options}
    return masked_linear(x, weight, level, [0, 80], None, **call), (x, weight, level)


def test_a_triton_launch_is_recorded_and_answered(cuda):
    out, (x, weight, level) = linear("cuda:1")
    want = masked_linear_reference(*(t.cpu() for t in (x, weight, level)), [0, 80], relu=True)
    assert torch.equal(out.cpu(), want)
    (taken,) = cuda.counts.launches
    assert taken.kernel == "masked_linear_kernel" and taken.constants["bias"] is None
    assert taken.integers["N"] == 3 and taken.integers["width"] == 32
    assert taken.pattern["width"] == "16" and taken.pattern["N"] == "any"
    assert taken.pointers["weight"] == ("bfloat16", True) and taken.pointers["level"][0] == "uint8"
    assert {"BM", "BN", "BK", "num_warps", "num_stages"} <= taken.constants.keys()
    assert cuda.counts.triton.total() == 1


def test_a_view_into_a_tensor_is_not_aligned(cuda):
    whole, ones = torch.zeros(101, device="cuda"), torch.ones(1, 100, device="cuda")
    score_linear(whole[None, 1:], ones, ones[:, :1])
    (taken,) = cuda.counts.launches
    assert taken.pattern["weight"] == "any" and taken.pattern["out"] == "16"
    assert taken.elements["weight"] == 100


def test_a_launch_on_another_device_than_the_current_fails(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    linear("cuda:0")
    with pytest.raises(RuntimeError, match="is on cuda:1, launched on cuda:0"):
        linear("cuda:1")


def test_a_grid_over_the_limit_fails(cuda, monkeypatch):
    monkeypatch.setattr("pretend.answers.MOST_PROGRAMS", (0, 65535, 65535))
    with pytest.raises(RuntimeError, match="invalid argument.*masked_linear_kernel"):
        linear("cuda:0")


def test_a_launch_in_a_graph_is_answered_at_each_replay(cuda):
    x, weight = torch.ones(1, 16, device="cuda"), torch.ones(1, 16, device="cuda")
    level = torch.ones(1, 16, dtype=torch.uint8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores = score_linear(weight, x, level[:, :1].float())
    x.fill_(3)
    graph.replay()
    assert scores.tolist() == [[3.0] * 16] and cuda.counts.replayed == cuda.counts.captured.total()


def test_streams_are_of_a_device(cuda):
    side = torch.cuda.Stream("cuda:1")
    with torch.cuda.stream(side):
        assert torch.cuda.current_device() == 1 and torch.cuda.current_stream() is side
        linear("cuda:1")
    assert torch.cuda.current_device() == 0
    with pytest.raises(RuntimeError, match="stream of cuda:1"):
        torch.ones(2, device="cuda:0").record_stream(side)


def test_threads_have_a_device_of_their_own(cuda):
    torch.cuda.set_device(1)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.cuda.current_device).result() == 0
        assert pool.submit(lambda: torch.ones(2, device="cuda:1") + 1).result().tolist() == [2, 2]
    torch.cuda.set_device(0)


def test_batch_norm(cuda):
    x, (mean, var) = torch.randn(2, 3, 4, 4), torch.rand(2, 3)
    for device in ("cpu", "cuda:0"):
        leaf = x.to(device).requires_grad_()
        found = F.batch_norm(leaf * 1, mean.to(device), var.to(device))
        if device == "cpu":
            want = found
    assert torch.equal(found.cpu(), want)
