"""The memory budget is kept, short memory gives the same circuit, and what it took is measured."""

import gc
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from command import call

from circuitcore.engine import executors as execute
from circuitcore.engine import footprint
from circuitcore.engine.footprint import Counts, for_chunks, predicted
from circuitcore.engine.prepare import prepare
from circuitcore.engine.splits import Split
from circuitcore.errors import DeviceError
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import DTYPES, Machine, machine
from circuitcore.machine.meter import INTERVAL, Meter, return_freed_memory
from circuitcore.machine.scratch import Scratch
from circuitcore.network.forward import Tally
from circuitcore.network.trace import trace
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import contributions

CPU = torch.device("cpu")
MB = 1 << 20
SLACK = 24 * MB  # small tensors that the C library keeps when they are freed, and threads' stacks
ALEXNET = Options(extraction_images=20, levels="32", resize=224, crop=224)
IMAGENET = Counts(20_000, 30_000, 1000)
OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]


@pytest.fixture(scope="module")
def alexnet():
    """Full-size AlexNet as shapes alone."""
    with torch.device("meta"):
        module = torchvision.models.alexnet()
    zeros = {name: torch.zeros(()).expand(w.shape) for name, w in module.state_dict().items()}
    module.load_state_dict(zeros, assign=True)
    return trace(module.eval())


@pytest.fixture(scope="module")
def prepared():
    """The bundled example at a few levels."""
    options = Options(fc_levels="0,0.5,0.9,0.99", conv_levels="0,0.5,0.9", device="cpu")
    return prepare(read_inputs(options), options, machine(options), Silent())


def test_freed_memory_is_seen_and_mapped_files_are_not_counted():
    with Meter(CPU) as meter:
        block = np.ones(64 * MB, np.uint8)
        time.sleep(10 * INTERVAL)
        del block
    with Meter(CPU) as mapped:
        Scratch().array("ones", (64 * MB,), np.dtype(np.uint8))[:] = 1
    assert 60 * MB < meter.peak < 72 * MB
    assert mapped.peak < 8 * MB


def test_what_was_held_before_counts():
    with Meter(CPU, held=123 * MB) as meter:
        assert meter.so_far() >= 123 * MB
    assert 123 * MB <= meter.peak < 131 * MB


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_imagenet_fits_eight_gigabytes(alexnet, device, dtype):
    options = replace(ALEXNET, dtype=dtype)
    on = Machine(torch.device(device), DTYPES[dtype], 8 * 10**9)
    found = predicted(alexnet, (3, 224, 224), options, on, IMAGENET)
    assert max(found.values()) <= 8 * 10**9


def test_a_budget_is_for_all_but_code_down_to_the_least_that_works(alexnet, monkeypatch):
    monkeypatch.setattr(footprint, "must_compile", lambda *options: False)

    def peak(budget):
        on = Machine(CPU, torch.float32, budget)
        return max(predicted(alexnet, (3, 224, 224), ALEXNET, on, IMAGENET).values())

    with pytest.raises(DeviceError) as refused:
        peak(100 * MB)
    least = int(str(refused.value).partition("--memory ")[2].partition("M")[0])
    weights = 4 * sum(w.numel() for w in alexnet.weights.values())
    assert weights < least * MB < 8 * weights
    code = footprint.CODE + footprint.BUFFERS + footprint.CONVOLUTION * footprint.CONVOLUTIONS
    assert peak(least * MB) <= least * MB + code
    assert peak(least * MB) < peak(2 * least * MB) <= 2 * least * MB + code
    with pytest.raises(DeviceError):
        peak((least - 1) * MB)


def test_too_small_a_budget_is_refused_before_work(tmp_path):
    said = call("sweep", "--memory", "2M", "--out", tmp_path / "run", code=5).stderr
    assert "give --memory" in said


def with_memory(prepared, memory):
    """The same with so many bytes for chunks of images."""
    sizes = replace(prepared.runner.sizes, memory=memory)
    return replace(prepared, runner=replace(prepared.runner, sizes=sizes))


def level_choices(found):
    return [(s.chosen, [v.kept_weights for v in s.levels]) for s in found.record.stages]


def test_the_least_budget_gives_the_same_circuit(prepared):
    whole = extract_circuit(prepared, 1, "Trouser")
    options, network = prepared.options, prepared.runner.network
    counts = Counts(len(prepared.extraction), len(prepared.heldout), 10)
    with pytest.raises(DeviceError) as refused:
        for_chunks(network, (1, 28, 28), options, Machine(CPU, torch.float32, MB), counts)
    least = int(str(refused.value).partition("--memory ")[2].partition("M")[0]) * MB
    on = Machine(CPU, torch.float32, least)
    spare = for_chunks(network, (1, 28, 28), options, on, counts)
    small = with_memory(prepared, spare)
    assert small.runner.forward_chunk() < 20
    found = extract_circuit(small, 1, "Trouser")
    assert level_choices(found) == level_choices(whole)
    assert all(torch.equal(found.kept[name], whole.kept[name]) for name in whole.kept)


def test_fc_stage_of_many_images_keeps_the_budget(prepared):
    """As many images at once as a large budget allows break a small one; its own chunks do not."""
    few = prepared.extraction
    (name, stored), count = next(iter(few.features.items())), 20_000
    many = Scratch().array(name, (count, *stored.shape[1:]), stored.dtype)
    for first in range(0, count, len(stored)):
        many[first : first + len(stored)] = stored[: count - first]
    split = Split(few.pixels, torch.zeros(count), torch.zeros(count, 10), {name: many})
    found = contributions(prepared.runner.network, prepared.scoring_images(1), 1)
    assigned = stage_levels(prepared.runner.network, "fc", found, 1, prepared.options)

    def look(memory, images):
        own = with_memory(prepared, memory).runner
        runs = execute.executor(own, split, 1, assigned, {}, Tally())
        gc.collect()
        return_freed_memory()  # what earlier tests freed is not to be taken again, unseen
        with Meter(CPU) as meter, torch.inference_mode():
            out = runs.look([1, 2, 3], np.arange(images), True)
        return out, meter.peak

    small = 8 * MB
    look(small, 500)  # compiles and loads what the others need
    bounded, peak = look(small, count)
    assert peak < small + SLACK
    whole, unbounded = look(8000 * MB, count)
    assert unbounded > small + SLACK
    torch.testing.assert_close(bounded, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_chunk_says_so_and_gives_the_same_circuit(
    prepared, monkeypatch, error
):
    whole = extract_circuit(prepared, 1, "Trouser")
    said = []
    short = replace(prepared, runner=replace(prepared.runner, note=said.append))
    linear, chain = torch.nn.functional.linear, execute.masked_chain

    def failing(run):
        def call(x, *arguments, **options):
            if len(x) > 30:
                raise error
            return run(x, *arguments, **options)

        return call

    monkeypatch.setattr(execute, "masked_chain", failing(chain))
    monkeypatch.setattr("circuitcore.network.compact.pieces.F.linear", failing(linear))
    found = extract_circuit(short, 1, "Trouser")
    assert all("out of memory with" in line and "going on with" in line for line in said)
    assert "out of memory with 200 images at once; going on with 100" in said
    assert "out of memory with 64 images at once; going on with 32" in said
    assert level_choices(found) == level_choices(whole)
    assert all(torch.equal(found.kept[name], whole.kept[name]) for name in whole.kept)
    strict = replace(short.runner, machine=replace(short.runner.machine, fallback=False))
    with pytest.raises(DeviceError, match="drop --no-fallback"):
        extract_circuit(replace(short, runner=strict), 1, "Trouser")


def test_a_run_says_what_it_took(tmp_path):
    """Measured and predicted in order of magnitude; bench/e2e/memory.py holds them to 20 %."""
    arguments = ["sweep", "Trouser", "--levels", "4", "--out", tmp_path / "run", "--format", "json"]
    (category,) = json.loads(call(*arguments).stdout)["categories"]
    assert category["cost"]["memory_bytes"] > 4 * MB  # the weights alone
