"""Integrated gradients against loops over images and steps in plain float64, and completeness."""

import pytest
import torch
import torch.nn.functional as F
from criteria import scores_agree, scoring_images, sweep_agrees

from circuitcore.extraction.planning.plan import plan
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.device import machine
from circuitcore.network.trace import trace
from circuitcore.options import Options
from circuitcore.progress import Silent
from circuitcore.scoring.criteria import path_images, scored_by

CATEGORY, STEPS = 8, 2
FIRST = "features.0"  # reads the image: on the path its input is u times the image


@pytest.fixture(scope="module")
def images(example):
    return scoring_images(example, CATEGORY)


@pytest.fixture(scope="module")
def long_way(example, method, images):
    """Scores of every magnitude wanted, from one image and one step after another."""
    done = {}

    def of(magnitude):
        if magnitude not in done:
            done[magnitude] = integrated(example.double, method, images, magnitude)
        return done[magnitude]

    return of


def integrated(network, method, images, magnitude):
    """Mean over images and midpoints of the path from 0 of the scores of that one image."""
    total = {}
    each = "signed" if magnitude == "set" else magnitude
    for image in images:
        for step in range(STEPS):
            point = (2 * step + 1) / (2 * STEPS) * image[None]
            for layer, own in method.score(network, point.clone(), CATEGORY, each).items():
                total[layer] = total.get(layer, 0) + own / (len(images) * STEPS)
    return {layer: own.abs() for layer, own in total.items()} if magnitude == "set" else total


def input_gradients(network, method, images, steps):
    """Integrated gradients of the logit to every pixel, float64: midpoint rule, a loop."""
    total = torch.zeros_like(images)
    for step in range(steps):
        point = ((step + 0.5) / steps * images).requires_grad_(True)
        logit = method.run(network, point)[:, CATEGORY].sum()
        total += torch.autograd.grad(logit, point)[0] / steps
    return images * total


@pytest.mark.parametrize("magnitude", ["position", "set"])
def test_scores_are_those_of_loops(magnitude, example, long_way, images):
    options = Options(criterion="ig", steps=STEPS, magnitude=magnitude)
    scores_agree(trace(example.network), images, CATEGORY, options, long_way(magnitude))


def test_completeness(example, method, images):
    """What all pixels get adds up to z(x) - z(baseline), the nearer the more steps."""
    with torch.no_grad():
        zero = method.run(example.double, torch.zeros_like(images))[:, CATEGORY]
        risen = method.run(example.double, images)[:, CATEGORY] - zero
    network = trace(example.network)
    weight, settings = network.weights[FIRST], network.step(FIRST).settings
    errors = []
    for steps in (2, 16, 128):
        plain = input_gradients(example.double, method, images, steps).flatten(1).sum(1)
        errors.append(float((plain - risen).abs().max()))
        options = Options(criterion="ig", steps=steps)
        found = scored_by(network, images.float(), CATEGORY, options)[FIRST]
        assert found.per_image == steps and len(found.x) == steps * len(images)
        of_weights = (F.conv2d(found.x, weight, **settings) * found.g).flatten(1).sum(1)
        at = (torch.arange(steps) + 0.5) / steps
        product = (of_weights.view(-1, steps) / at).mean(1).double()
        assert (product - plain).abs().max() <= 1e-4 * risen.abs().max()
    assert errors[0] > errors[1] > errors[2]
    # a rectifier's kinks: its gradient is constant between them, so an error of 1 / steps is left
    assert errors[2] <= 1e-2 * risen.abs().max() < errors[0]


def test_one_step_is_half_the_image(images):
    assert torch.equal(path_images(images, 1), images / 2)
    two = path_images(images, 2)
    assert torch.equal(two[2:4], torch.stack([images[1] / 4, images[1] * 3 / 4]))


def test_some_of_the_images(example, images):
    """What resampling draws: all path points of an image together."""
    network, options = trace(example.network), Options(criterion="ig", steps=STEPS)
    every = scored_by(network, images.float(), CATEGORY, options)
    chosen = torch.tensor([3, 1])
    alone = scored_by(network, images[chosen].float(), CATEGORY, options)
    for name, each in alone.items():
        drawn = every[name].of(chosen)
        torch.testing.assert_close(drawn.x, each.x)
        torch.testing.assert_close(drawn.g, each.g)


def test_whole_sweep(example, method, long_way):
    expected = long_way("position")
    sweep_agrees(example, method, CATEGORY, expected, criterion="ig", steps=STEPS)


def test_it_is_another_criterion(example, images, method, long_way):
    """A tenth of the first layer's weights at least change places with activation x gradient."""
    plain, own = method.score(example.double, images.clone(), CATEGORY), long_way("position")
    places = [each[FIRST].reshape(-1).argsort().argsort() for each in (plain, own)]
    assert (places[0] != places[1]).double().mean() > 0.1


def test_a_plan_counts_every_step():
    def scoring(**changes):
        options = Options(screen="off", levels="5", **changes)
        planned = plan(read_inputs(options), options, machine(options), ["Bag"], Silent())
        (step,) = (s for s in planned.steps if s.what.startswith("scoring"))
        return step.multiply_adds, planned.fpe

    once, fpe = scoring()
    assert scoring(criterion="ig", steps=5) == (5 * once, fpe)
