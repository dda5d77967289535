"""Scores of the bundled network against per-position maps multiplied out in float64.

At kernel granularity the absolute value stands between the sum over taps and the sum over
positions, and with ``image`` between positions and images, so neither follows from one product.
"""

import pytest
import torch

from circuitcore.kernels.levels.layer import raw_scores
from circuitcore.network.trace import trace
from circuitcore.options import Options
from circuitcore.scoring.scores import contributions, layer_scores

CATEGORY = 3
CLOSE = 1e-5  # relative to the layer's highest score: float32 products, summed over positions


@pytest.fixture(scope="module")
def scored(example, method):
    """The scoring images' inputs and gradients: the product's, and the reference's own."""
    images, labels = example.splits["scoring"]
    images = images[labels == CATEGORY]
    network = trace(example.network)
    return network, contributions(network, images.float(), CATEGORY), images


def compare(scored, example, method, granularity, magnitude, spatial):
    network, found, images = scored
    options = Options(granularity=granularity, magnitude=magnitude, spatial=spatial)
    expected = method.score(
        example.double, images.clone(), CATEGORY, magnitude, granularity, spatial
    )
    assert list(expected) == network.layers()
    for layer, long_way in expected.items():
        product = layer_scores(network, layer, found[layer], CATEGORY, options)
        values = raw_scores(product.layer).reshape(-1).double()
        long_way = long_way.reshape(-1)
        assert values.shape == long_way.shape, layer
        worst = (values - long_way).abs().max() / long_way.abs().max()
        assert worst <= CLOSE, f"{layer}: {worst:.1e}"
        if magnitude in ("position", "image"):  # nothing cancels: zero where the reference is
            assert torch.equal(values == 0, long_way == 0), layer


@pytest.mark.parametrize("magnitude", ["position", "image", "set", "signed"])
def test_kernel_granularity(scored, example, method, magnitude):
    compare(scored, example, method, "kernel", magnitude, "sum")


@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_image_magnitude(scored, example, method, granularity):
    compare(scored, example, method, granularity, "image", "sum")


@pytest.mark.parametrize("granularity", ["weight", "kernel"])
def test_mean_over_positions(scored, example, method, granularity):
    compare(scored, example, method, granularity, "position", "mean")


def test_granularities_add_up(scored):
    """Signed scores are linear: a kernel's is the sum of its taps', a filter's of its kernels'."""
    network, found, _ = scored
    for layer in network.layers("conv"):
        values = {
            granularity: raw_scores(
                layer_scores(
                    network,
                    layer,
                    found[layer],
                    CATEGORY,
                    Options(granularity=granularity, magnitude="signed"),
                ).layer
            )
            for granularity in ("weight", "kernel", "filter")
        }
        shape = network.weights[layer].shape
        taps = values["weight"].view(shape).sum((2, 3))
        scale = values["weight"].abs().sum()
        torch.testing.assert_close(
            taps, values["kernel"].view(shape[:2]), atol=1e-5 * scale, rtol=0
        )
        torch.testing.assert_close(
            taps.sum(1), values["filter"].view(shape[0]), atol=1e-5 * scale, rtol=0
        )
