"""A GPU's passes over static buffers, run eagerly on the CPU, give what compacted circuits give."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from circuitcore.engine.passes import circuit_pass
from circuitcore.engine.replay import Replay, flat_levels
from circuitcore.errors import DeviceError
from circuitcore.network.forward import Tally


class Eager(Replay):
    """Runs what a device would replay; ``replays``: how many images each took."""

    fits = 10**9

    def _graph(self, size):
        if size > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

        def replay():
            self.replays = [*getattr(self, "replays", []), size]
            self._pass(size)

        return SimpleNamespace(replay=replay)


def eager(prepared, batch, resident=True, **options):
    runner = prepared.runner
    both = np.concatenate([prepared.extraction.pixels, prepared.heldout.pixels])
    pixels = torch.from_numpy(both) if resident else None
    work = runner.sizes.multiply_adds_of_one
    return Eager(runner.network, pixels, runner.normalise, batch, work, **options)


@pytest.mark.parametrize("batch", [50, 64, 100, 512])
@pytest.mark.parametrize("resident", [True, False])
def test_any_circuit_on_any_images(prepared, masks, batch, resident):
    replay, network = eager(prepared, batch, resident), prepared.runner.network
    for split, unit in ((prepared.heldout, 3), (prepared.extraction, 0)):
        kept = masks(network, 0.6)
        some = torch.randperm(len(split))[:90].numpy()
        with torch.inference_mode():
            replay.hold(kept, unit, kept)
            found = replay.look(split, some, [lambda: None])
        whole = circuit_pass(prepared.runner, split, unit, kept)(some)
        assert (found[0] - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("batch", [7, 64])
@pytest.mark.parametrize("resident", [True, False])
def test_levels_follow_one_another_in_one_look(prepared, masks, batch, resident):
    replay, network, split = (
        eager(prepared, batch, resident),
        prepared.runner.network,
        prepared.extraction,
    )
    random = torch.Generator().manual_seed(2)
    levels = {
        name: torch.randint(0, 40, network.weights[name].shape, generator=random).byte()
        for name in network.layers("conv")
    }
    fixed = {n: m for n, m in masks(network, 1).items() if n in network.layers("fc")}
    flat, some, ts = (
        flat_levels(levels, network.layers("conv")),
        np.arange(0, 130, 2),
        range(0, 40, 1),
    )
    tally = Tally()
    with torch.inference_mode():
        replay.hold(levels, 2, fixed)
        found = replay.look(split, some, [lambda t=t: replay.level(flat, t) for t in ts], tally)
    assert found.shape == (40, 65)
    for row, t in zip(found, ts, strict=True):
        kept = fixed | {name: level > t for name, level in levels.items()}
        whole = circuit_pass(prepared.runner, split, 2, kept)(some)
        assert (row - whole).abs().max() <= 1e-5 * whole.abs().max() + 1e-6
    padded = sum(replay.batches(65))
    assert tally.multiply_adds == 40 * padded * prepared.runner.sizes.multiply_adds_of_one


def test_a_circuit_is_written_again_only_after_another(prepared, masks):
    replay, network = eager(prepared, 64), prepared.runner.network
    kept = masks(network, 0.6)
    replay.hold("a", 1, kept)
    first = replay.masked.clone()
    replay.masked.zero_()
    replay.hold("a", 1, kept)
    assert not replay.masked.any()
    replay.hold("b", 1, {})
    assert torch.equal(replay.masked, replay.whole)
    replay.hold("a", 1, kept)
    assert torch.equal(replay.masked, first)


def test_a_pruned_nan_takes_no_part(prepared, masks):
    replay, network = eager(prepared, 64), prepared.runner.network
    kept = masks(network, 0.6)
    want = circuit_pass(prepared.runner, prepared.extraction, 1, kept)(np.arange(20))
    name = network.layers("conv")[1]
    pruned = ~kept[name].permute(0, 2, 3, 1).reshape(-1)
    start = network.weights[network.layers("conv")[0]].numel()
    replay.whole[start : start + len(pruned)][pruned] = torch.nan
    levels = {n: kept[n].byte() for n in network.layers("conv")}
    flat = flat_levels(levels, network.layers("conv"))
    replay.hold("a", 1, kept)
    found = replay.look(prepared.extraction, np.arange(20), [lambda: replay.level(flat, 0)])[0]
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()


def test_batches_get_smaller_where_memory_runs_out(prepared):
    told = []
    replay = eager(prepared, 128, note=told.append)
    replay.fits = 40
    tally = Tally()
    replay.hold("a", 1, {})
    found = replay.look(prepared.extraction, np.arange(100), [lambda: None], tally)
    assert replay.batch == 32 and set(replay.replays) == {32} and len(told) == 2
    assert found.isfinite().all() and tally.multiply_adds == 128 * replay.multiply_adds
    strict = eager(prepared, 128, fallback=False)
    strict.fits = 40
    with pytest.raises(DeviceError, match="--no-fallback"):
        strict.look(prepared.extraction, np.arange(100), [lambda: None])
