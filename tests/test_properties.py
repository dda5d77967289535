"""Properties of the method that hold for every network, image set and grid."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from circuitcore.engine.passes import activations
from circuitcore.engine.prepare import prepare
from circuitcore.extraction.accuracy import Judge
from circuitcore.extraction.circuit import extract_circuit
from circuitcore.inputs.read import read_inputs
from circuitcore.kernels.masked_conv2d.operation import masked_conv2d
from circuitcore.kernels.masked_linear.operation import masked_linear
from circuitcore.machine.device import machine
from circuitcore.network.forward import Masks, forward, target_row
from circuitcore.network.trace import trace
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.runs.circuitfile import read_circuit, write_circuit
from circuitcore.scoring.levels import stage_levels
from circuitcore.scoring.scores import contributions

FEW = {"levels": "0,0.3,0.7,0.9,0.98"}


@pytest.fixture(scope="module")
def prepared():
    options = Options(**FEW)
    return prepare(read_inputs(options), options, machine(options), Silent())


class Small(nn.Module):
    """Whole-number weights, so that every score is exact in float32 and ties abound."""

    def __init__(self, seed):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1)
        )
        self.classifier = nn.Sequential(nn.ReLU(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            whole = torch.randint(-2, 3, parameter.shape, generator=generator)
            parameter.data.copy_(whole)

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


def whole_images(seed, count=2):
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randint(-2, 3, (count, 1, 4, 4), generator=generator).float()


# --- levels ---------------------------------------------------------------------------------------


def test_level_zero_is_the_unpruned_network(prepared):
    """Level 0 of both stages together: same logits, and not one weight pruned."""
    found = contributions(prepared.runner.network, prepared.scoring_images(4), 4)
    levels = {}
    for stage in ("fc", "conv"):
        assigned = stage_levels(prepared.runner.network, stage, found, 4, prepared.options)
        assert assigned.pruned[0] == 0
        assert all(bool((level > 0).all()) for level in assigned.levels.values())
        levels |= assigned.levels
    values = {"input": prepared.runner.batch(prepared.extraction, slice(None))}
    row = forward(
        prepared.runner.network, values, [prepared.runner.network.last],
        override=target_row(prepared.runner.network, 4), masks=Masks(levels, [0]),
    )[0].flatten()  # fmt: skip
    unpruned = prepared.extraction.logits[:, 4]
    torch.testing.assert_close(row, unpruned, rtol=1e-5, atol=1e-5)
    record = extract_circuit(prepared, 4, "Coat").record
    first = record.stages[0].levels[0]
    assert first.hit == record.unpruned.extraction_biased.hit
    assert first.csa == record.unpruned.extraction_biased.csa


grids = st.one_of(
    st.integers(2, 40).map(str),
    st.sampled_from(["linear:2", "linear:7", "linear:51", "linear:255"]),
    st.lists(st.floats(0, 1), min_size=2, max_size=12, unique=True)
    .filter(lambda given: len({0.0, *given}) > 1)
    .map(lambda given: ",".join(map(repr, given)) + ","),
)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    grid=grids,
    granularity=st.sampled_from(["weight", "kernel", "filter"]),
    ties=st.sampled_from(["weight", "snap"]),
    magnitude=st.sampled_from(["position", "image", "set", "signed"]),
    normalise=st.sampled_from(["paper", "none", "minmax", "l1"]),
    stage=st.sampled_from(["fc", "conv"]),
)
def test_levels_are_nested_and_exact(
    method, seed, grid, granularity, ties, magnitude, normalise, stage
):
    module, images = Small(seed), whole_images(seed)
    options = Options(
        levels=grid, granularity=granularity, ties=ties, magnitude=magnitude, normalise=normalise
    )
    network = trace(module)
    found = contributions(network, images, 1)
    assigned = stage_levels(network, stage, found, 1, options)
    double = method.double(module)
    scores = method.score(double, images.double(), 1, magnitude, granularity)
    own = {layer: scores[layer] for layer in method.layers(double, stage)}
    ranking = method.rank(double, 1, method.normalise(own, normalise, stage))
    assert assigned.relevant == ranking.sizes.sum() == network.relevant(stage)

    whole = granularity == "weight" or (stage == "fc" and granularity == "kernel")
    exact = normalise == "none" or (normalise == "paper" and stage == "conv")
    before = {layer: torch.ones_like(level, dtype=bool) for layer, level in assigned.levels.items()}
    for t, fraction in enumerate(options.grid(stage)):
        masks = assigned.kept(t)
        assert all(not bool((masks[k] & ~before[k]).any()) for k in masks), "not nested"
        pruned = sum(int((~mask).sum()) for mask in masks.values())
        assert pruned == assigned.pruned[t]
        if ties == "weight" and whole:
            assert pruned == round(fraction * assigned.relevant)
        if ties == "weight" and not whole:
            target, largest = round(fraction * assigned.relevant), int(ranking.sizes.max())
            assert abs(pruned - target) <= largest / 2
        if exact:  # no rounding anywhere: the very same weights
            units = method.pruned_units(ranking, fraction, ties)
            for layer, mask in method.masks_of(ranking, units).items():
                assert torch.equal(masks[layer], mask), (t, layer)
        before = masks


def test_equal_scores_break_ties_the_same_way_every_time(method):
    """An image of zeros scores every weight 0: the smaller |w| goes first, then the index."""
    module = Small(3)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.data.zero_()
    network, images = trace(module), torch.zeros(2, 1, 4, 4)
    assigned = stage_levels(
        network, "fc", contributions(network, images, 0), 0, Options(levels="5")
    )
    assert assigned.tied_zero == 1.0
    double = method.double(module)
    scores = method.score(double, images.double(), 0)
    ranking = method.rank(double, 0, {k: scores[k] for k in method.layers(double, "fc")})
    for t, fraction in enumerate(Options(levels="5").grid("fc")):
        expected = method.masks_of(ranking, method.pruned_units(ranking, fraction))
        assert all(torch.equal(assigned.kept(t)[layer], mask) for layer, mask in expected.items())


# --- the exact bias -------------------------------------------------------------------------------


def trained_bias(steps, target, norm, count=2000):
    """Gradient training of the bias on sigmoids in place of steps; every bias it passed."""
    others = max(int((~target).sum()), 1)
    width = max(float(np.std(steps)) / 10, 1e-6)
    bias, momentum, visited = 0.0, 0.0, []
    for step in range(count):
        z = np.clip((bias - steps) / width, -60, 60)
        soft = 1 / (1 + np.exp(-z))
        slope = soft * (1 - soft) / width
        hit, false = slope[target].sum() / target.sum(), slope[~target].sum()
        if norm == "predicted":
            said, h, f = soft.sum() + 1e-12, soft[target].sum(), soft[~target].sum()
            below = (false * said - f * slope.sum()) / said**2
            del h
        else:
            below = false / (target.sum() if norm == "target" else others)
        momentum = 0.9 * momentum + (hit - below)
        bias += width**2 * momentum * 0.5 ** (6 * step / count)
        visited.append(bias)
    return np.array(visited)


def csa_of(steps, target, biases, norm):
    said = np.asarray(biases)[:, None] > steps
    hits, false = said[:, target].sum(1), said[:, ~target].sum(1)
    below = {"target": target.sum(), "other": (~target).sum(), "predicted": hits + false}[norm]
    return hits / target.sum() - np.where(false > 0, false / np.maximum(below, 1), 0.0)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 80),
    whole=st.booleans(),
    shift=st.floats(-3, 3),
    norm=st.sampled_from(["target", "other", "predicted"]),
)
def test_exact_bias_is_never_beaten(method, seed, count, whole, shift, norm):
    generator = np.random.default_rng(seed)
    target = generator.random(count) < 0.3
    target[0], target[-1] = True, False
    activation = generator.normal(size=count) + shift + 1.5 * target
    margin = generator.normal(size=count)
    if whole:  # many equal steps, many equally good biases
        activation, margin = np.round(activation), np.round(margin)
    activation, steps = activation.astype(np.float32), None
    steps = margin - activation.astype(np.float64)
    judge = Judge(
        torch.from_numpy(margin), torch.from_numpy(target), torch.from_numpy(activation), norm
    )
    found = judge.fitted(torch.from_numpy(activation)[None], "exact")[0]
    assert found.csa == pytest.approx(csa_of(steps, target, [found.bias], norm)[0], abs=1e-12)

    grid = np.linspace(steps.min() - 1, steps.max() + 1, 4001)
    tried = np.concatenate([grid, trained_bias(steps, target, norm), [0.0]])
    best = csa_of(steps, target, tried, norm).max()
    expected = method.best_bias(
        torch.from_numpy(activation).double(),
        torch.from_numpy(margin),
        torch.from_numpy(target),
        norm,
    )
    if found.csa > 0 or best > 0:
        assert found.csa >= best - 1e-12
        assert any(low < found.bias <= high for low, high in expected.intervals)
    else:  # no image is said to be the category
        assert found.bias == min(0.0, steps.min()) and found.csa == 0
    assert found.csa == expected.csa and found.bias == pytest.approx(expected.bias)
    trained = judge.fitted(torch.from_numpy(activation)[None], "sgd")[0]
    assert found.csa >= trained.csa or best <= 0
    matched = judge.fitted(torch.from_numpy(activation)[None], "matched")[0]
    assert matched.false_alarms <= judge.unpruned_alarms
    assert matched.hit >= judge.at(judge.unpruned, 0.0).hit


# --- permutation of hidden units ------------------------------------------------------------------


def permuted(state, seed):
    """The bundled network with its channels and hidden units in another order, and the orders."""
    generator = torch.Generator().manual_seed(seed)
    layers = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    orders, incoming = {}, torch.arange(state[f"{layers[0]}.weight"].shape[1])
    state = dict(state)
    for layer in layers:
        weight = state[f"{layer}.weight"]
        outgoing = torch.arange(len(weight))
        if layer != layers[-1]:
            outgoing = outgoing[torch.randperm(len(weight), generator=generator)]
        if weight.dim() == 2 and len(incoming) < weight.shape[1]:  # flattened channels
            area = weight.shape[1] // len(incoming)
            incoming = (incoming[:, None] * area + torch.arange(area)).flatten()
        orders[layer] = (outgoing, incoming)
        state[f"{layer}.weight"] = weight[outgoing][:, incoming].contiguous()
        state[f"{layer}.bias"] = state[f"{layer}.bias"][outgoing].contiguous()
        incoming = outgoing
    return state, orders


def test_pruning_is_equivariant_under_permutation(example, tmp_path, prepared):
    """Hidden units in another order: the same circuit, in that order.

    The order of units is the last tie-break, so weights with equal score and equal |w| may take
    each other's place: they may differ as long as every such group keeps as many.
    """
    state, orders = permuted(example.network.state_dict(), 7)
    path = tmp_path / "permuted.safetensors"
    save_file(state, path)
    listed = tmp_path / "categories.txt"
    listed.write_text("\n".join(example.categories))
    options = Options(model=f"file:{path}", arch="bundled", categories=listed, **FEW)
    other = prepare(read_inputs(options), options, machine(options), Silent())
    torch.testing.assert_close(
        other.extraction.logits, prepared.extraction.logits, rtol=1e-4, atol=1e-4
    )
    for unit in (2, 7):
        plain, moved = (extract_circuit(p, unit, "x") for p in (prepared, other))
        assert plain.record.circuit and moved.record.circuit
        for one, two in zip(plain.record.stages, moved.record.stages, strict=True):
            assert one.chosen == two.chosen
            assert [level.csa for level in one.levels] == [level.csa for level in two.levels]
        assert plain.record.circuit.heldout.csa == moved.record.circuit.heldout.csa

        found = contributions(prepared.runner.network, prepared.scoring_images(unit), unit)
        there = contributions(other.runner.network, other.scoring_images(unit), unit)
        for stage in ("fc", "conv"):
            one = stage_levels(prepared.runner.network, stage, found, unit, prepared.options)
            two = stage_levels(other.runner.network, stage, there, unit, other.options)
            assert one.pruned == two.pruned
            for t in range(len(one.pruned)):
                apart = 0
                for layer, mask in one.kept(t).items():
                    outgoing, incoming = orders[layer]
                    outgoing = outgoing[:1] * 0 if mask.shape[0] == 1 else outgoing
                    differ = mask[outgoing][:, incoming] ^ two.kept(t)[layer]
                    weight = there[layer].weight.abs()
                    groups = weight[differ].unique()
                    apart += int(differ.sum())
                    if stage == "fc" and differ.any():  # only among equal |w| of equal score
                        assert len(groups) == 1, (t, layer, len(groups))
                assert apart / one.relevant < 1e-3, (stage, t, apart)


# --- circuits on disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1, 6])
def test_a_circuit_from_disk_gives_the_activations_it_was_saved_with(
    unit, prepared, tmp_path, example
):
    found = extract_circuit(prepared, unit, example.categories[unit])
    path = tmp_path / "unit.safetensors"
    write_circuit(path, "key", found.record, found.kept)
    stored = read_circuit(path)
    assert stored.record == found.record
    assert list(stored.kept) == list(found.kept)
    assert all(torch.equal(stored.kept[layer], found.kept[layer]) for layer in found.kept)
    again = activations(prepared.runner, prepared.heldout, unit, stored.kept)
    assert torch.equal(again, found.heldout)

    # and so does the plain network with its weights set to 0 by hand
    state = dict(example.network.state_dict())
    for layer, mask in stored.kept.items():
        weight = state[f"{layer}.weight"].clone()
        rows = slice(unit, unit + 1) if mask.shape[0] == 1 else slice(None)
        weight[rows] = torch.where(mask, weight[rows], 0.0)
        state[f"{layer}.weight"] = weight
    plain = trace(_loaded(example.network, state))
    images = example.splits["heldout"][0].float()
    logits = forward(plain, {"input": images}, [plain.last])[0]
    torch.testing.assert_close(logits[:, unit], found.heldout, rtol=1e-4, atol=1e-4)


def _loaded(network, state):
    import copy

    other = copy.deepcopy(network)
    other.load_state_dict(state)
    return other


def test_a_record_survives_its_file(prepared, tmp_path):
    """Numbers come back as they were, to the last bit."""
    found = extract_circuit(prepared, 0, "T-shirt")
    write_circuit(tmp_path / "u.safetensors", "k", found.record, found.kept)
    stored = read_circuit(tmp_path / "u.safetensors").record
    flat = math.fsum(level.bias for stage in found.record.stages for level in stage.levels)
    assert flat == math.fsum(level.bias for stage in stored.stages for level in stage.levels)
    assert dataclasses.asdict(prepared.inputs.categories[0])["index"] == 0


# --- one operation --------------------------------------------------------------------------------

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("relu", [False, True])
def test_bad_values_in_pruned_linear_weights_do_not_leak(impl, bad, relu):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 40, generator=generator)
    weight, bias = torch.randn(17, 40, generator=generator), torch.randn(17, generator=generator)
    level = torch.randint(0, 4, weight.shape, generator=generator).to(torch.uint8)
    for t in (0, 1, 2):
        spoiled = torch.where(level > t, weight, bad)
        clean = torch.where(level > t, weight, 0.0)
        out = masked_linear(x, spoiled, level, [t], bias, relu=relu, impl=impl)[0]
        expected = torch.nn.functional.linear(x, clean, bias)
        expected = torch.relu(expected) if relu else expected
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("groups", [1, 2])
def test_bad_values_in_pruned_convolution_weights_do_not_leak(impl, bad, groups):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 7, 7, generator=generator)
    weight = torch.randn(6, 4 // groups, 3, 3, generator=generator)
    level = torch.randint(0, 4, weight.shape, generator=generator).to(torch.uint8)
    shape = {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 1), "groups": groups}
    for t in (0, 1, 2):
        spoiled = torch.where(level > t, weight, bad)
        clean = torch.where(level > t, weight, 0.0)
        out = masked_conv2d(x, spoiled, level, [t], None, relu=False, impl=impl, **shape)[0]
        expected = torch.nn.functional.conv2d(x, clean, None, **shape)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
