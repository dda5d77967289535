"""What must hold of runs on a GPU: called on a real one (`tests/gpu`), as far as that goes on a
pretended one (`tests/pretend`)."""

from contextlib import contextmanager

import numpy as np
import torch
from command import call, masks
from sweeps import FEW, LEVELS, same, swept

import circuitcore
from circuitcore.engine.passes import circuit_pass
from circuitcore.engine.prepare import prepare
from circuitcore.engine.replay import flat_levels
from circuitcore.errors import DeviceError
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.machine.state import undisturbed
from circuitcore.network.forward import Tally
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.scoring.captured import can_be_captured
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import contributions

IMAGES = np.arange(0, 190, 3)


def a_sweep_gives_the_cpus_circuits(device, on_cpu, folder, **options):
    """Masks, hits and false alarms are equal, biases within 1e-5."""
    same(swept(folder, device, **options), on_cpu)


def the_command_line_takes_a_gpu_by_number(gpu, on_cpu, folder):
    """``--gpu N``: nothing but that device computes, and the circuits are the CPU's."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in {**FEW, **LEVELS}.items()]
    call(
        "sweep", "Trouser", "--gpu", gpu, "--dtype", "float32", "--out", folder, *arguments, "-q"
    )  # fmt: skip
    run = circuitcore.open_run(folder)
    assert run.manifest["device"] == f"cuda:{gpu}"
    same(run, on_cpu)


def twice_the_same(device, folder):
    """Two runs give equal masks, bit by bit, and equal records but for what is measured."""
    few = {"fc_levels": "0,0.9", "conv_levels": "0,0.9"}
    one, other = (swept(folder / name, device, **few) for name in ("one", "other"))
    found, wanted = masks(one.folder), masks(other.folder)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[key], wanted[key]) for key in found)
    for left, right in zip(
        one["Trouser"].record.stages, other["Trouser"].record.stages, strict=True
    ):
        assert [level.bias for level in left.levels] == [level.bias for level in right.levels]


def a_full_memory_is_no_wrong_circuit(device, on_cpu, folder, total):
    """With so many bytes a sweep finds the circuit in smaller batches, or says what it lacks."""
    fraction = total / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(fraction, device)
    try:
        same(swept(folder, device), on_cpu)
        return True
    except (DeviceError, torch.OutOfMemoryError) as error:
        assert "memory" in str(error)
        return False
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def prepared_on(device, **options):
    """The bundled problem, prepared on a device."""
    options = Options(heldout_images=10, device=device, **options)
    return prepare(read_inputs(options), options, machine(options), Silent())


def captured_passes_are_the_cpus(device, masks_of, **options):
    """Circuits over images as `engine.replay` replays them, against the CPU's eager pass.

    The second circuit reuses the graphs of the first: only static buffers change.
    """
    here, there = prepared_on(device, **options), prepared_on("cpu", **options)
    for unit, kept_of_conv in ((3, 0.6), (0, 0.3)):
        kept = masks_of(there.runner.network, kept_of_conv)
        on_device = {name: mask.to(here.runner.machine.device) for name, mask in kept.items()}
        found = circuit_pass(here.runner, here.extraction, unit, on_device)(IMAGES)
        wanted = circuit_pass(there.runner, there.extraction, unit, kept)(IMAGES)
        assert found.device.type == "cpu"
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert here.runner.replay(True).graphs, "nothing was captured"


def captured_scoring_is_what_it_captured(device, captures):
    """Level bytes of a graph captured for one category, replayed for others: those of each alone.

    ``captures``: says how many graphs were captured until now, None where it cannot be told.
    """
    here = prepared_on(device)
    network, before = here.runner.network, captures()
    assert can_be_captured(network, here.options)
    with undisturbed():
        for unit in (3, 0, 9):
            images = here.scoring_images(unit)
            found = here.ranking.ranked(images, unit)
            alone = contributions(network, images, unit)
            for stage in network.stages:
                wanted = stage_levels(network, stage, alone, unit, here.options)
                assert found[stage].pruned == wanted.pruned
                assert found[stage].tied_zero == wanted.tied_zero
                for t in range(len(wanted.pruned)):
                    kept, other = found[stage].kept(t), wanted.kept(t)
                    assert all(torch.equal(kept[name], other[name]) for name in other)
    assert before is None or captures() == before + 1
    assert not here.ranking.fails


@contextmanager
def no_waiting():
    """Within it torch refuses to wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Watched(Tally):
    """A tally that allows waiting again: it is told once all batches of a circuit are launched."""

    def add(self, multiply_adds):
        torch.cuda.set_sync_debug_mode("default")
        super().add(multiply_adds)


def chunks_wait_for_nothing(device, masks_of, **options):
    """From the upload of the images to look at to the copy of what was found, nothing waits."""
    here = prepared_on(device, **options)
    runner, split = here.runner, here.extraction
    convolutions = runner.network.layers("conv")
    random = torch.Generator().manual_seed(2)
    levels = {
        name: torch.randint(0, 5, runner.network.weights[name].shape, generator=random).byte()
        for name in convolutions
    }
    flat = flat_levels(levels, convolutions).to(runner.machine.device)
    kept = masks_of(runner.network, 1)
    fixed = {n: kept[n].to(runner.machine.device) for n in runner.network.layers("fc")}
    replay, entered = runner.replay(True), []

    def watched(t):
        def write():
            torch.cuda.set_sync_debug_mode("error")
            entered.append(t)
            replay.level(flat, t)

        return write

    writes = [watched(t) for t in range(5)]
    try:
        with torch.inference_mode():
            replay.hold(levels, 2, fixed)
            plain = [lambda t=t: replay.level(flat, t) for t in range(5)]
            wanted = replay.look(split, IMAGES, plain)  # captures the graphs
            found = replay.look(split, IMAGES, writes, Watched())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert entered and torch.equal(found, wanted)


def targets_have_the_cpus_circuits(device, folder):
    """Of a channel, of a unit with two stages, and of a direction: masks equal, values near."""
    np.save(folder / "d.npy", np.random.default_rng(0).normal(size=32))
    few = {"levels": "0,0.2", "threshold": 0.6, "extraction_images": 20, "heldout_images": 10}
    several = ("features.4:12", "classifier.2:5", f"features.3:{folder / 'd.npy'}")
    for place, target in enumerate(several):
        runs = [
            circuitcore.sweep(
                target=target, device=on, impl=impl, out=folder / f"{on[:3]}-{place}", **few
            )
            for on, impl in ((device, "auto"), ("cpu", "torch"))
        ]
        found, wanted = (masks(run.folder) for run in runs)
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[key], wanted[key]) for key in found)
        (here,), (there,) = (run.document.targets for run in runs)
        assert here.scoring_images == there.scoring_images
        for one, other in zip(here.stages, there.stages, strict=True):
            values = [[level.value for level in stage.levels] for stage in (one, other)]
            np.testing.assert_allclose(*np.array(values, float), atol=1e-5)
