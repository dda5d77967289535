"""Every operation is a torch custom operator whose fake gives the shape of the real result."""

import pytest
import torch
from masked_layers import draw, levels_of

import circuitcore.kernels.best_bias.operation
import circuitcore.kernels.first_conv.operation
import circuitcore.kernels.masked_conv2d.operation
import circuitcore.kernels.masked_linear.operation
import circuitcore.kernels.masked_weights.operation
import circuitcore.kernels.overlap.operation
import circuitcore.kernels.random_masks.operation
import circuitcore.kernels.score_conv.operation
import circuitcore.kernels.score_linear.operation  # noqa: F401

OPERATORS = torch.ops.circuitcore
NO_GRADIENT = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def arguments(impl):
    """{operator: calls} on small tensors, every shape of result an operator has."""
    conv = (draw(4, 2, 3, 3), draw(2, 4, 6, 5), draw(2, 4, 3, 5), [2, 1, 1, 1, 1, 1, 2])
    linear = (draw(6, 5), levels_of(6, 5), [0, 2, 3], draw(6), True, impl, True)
    filters = (draw(4, 2, 3, 3), levels_of(4, 2, 3, 3), [1, 3], None, conv[3], False, impl, True)
    return {
        "score_linear": [(draw(6, 5), draw(2, 6), draw(2, 5), "set", impl)],
        "score_conv": [
            (*conv, magnitude, granularity, impl)
            for magnitude, granularity in (
                ("image", "weight"), ("position", "kernel"), ("signed", "kernel"),
                ("position", "filter"),
            )
        ],
        "masked_linear": [(draw(4, 5), *linear), (draw(3, 4, 5), *linear)],
        "masked_conv2d": [(draw(2, 4, 6, 5), *filters), (draw(2, 2, 4, 6, 5), *filters)],
        "first_conv": [
            (levels_of(3, 4, 6, 5), draw(4, 4, 3, 3), draw(4), draw(4), draw(4), index,
             [2, 1, 1, 0], True, impl)
            for index in (None, torch.tensor([2, 0]))
        ],
        "overlap": [(levels_of(3, 70), "torch" if impl == "auto" else impl)],
        "masked_weights": [
            (draw(3, 70), levels_of(3, 70), torch.tensor([0, 2]).int(), draw(2, 3, 70),
             "torch" if impl == "auto" else impl)
        ],
        "random_masks": [
            (torch.tensor([0, 7, 2500]), [3, 20, 5000], [1, 2, 3, 2**32 - 1, 5, 6],
             "torch" if impl == "auto" else impl)
        ],
        "best_bias": [
            (draw(3, 9).double(), draw(9).double(), torch.arange(9) < 4, "target", most, fast)
            for fast in (False, True)
            for most in (None, 1)
        ],
    }  # fmt: skip


@pytest.mark.parametrize("impl", ["auto", "torch"])
@pytest.mark.parametrize("name", sorted(arguments("auto")))
def test_fake_and_real_agree(name, impl):
    for call in arguments(impl)[name]:
        torch.library.opcheck(getattr(OPERATORS, name), call, test_utils=NO_GRADIENT)


def test_compiled_without_a_break():
    """torch.compile keeps an operator whole: the graph holds it by name."""
    from circuitcore.kernels.masked_linear.operation import masked_linear
    from circuitcore.kernels.score_linear.operation import score_linear

    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    @torch.compile(backend=backend, fullgraph=True)
    def both(weight, x, g, level):
        scores = score_linear(weight, x, g)
        return scores, masked_linear(x, weight, level, [1, 3], relu=True)

    weight, x, g, level = draw(6, 5), draw(2, 5), draw(2, 6), levels_of(6, 5)
    scores, out = both(weight, x, g, level)
    assert torch.equal(scores, score_linear(weight, x, g))
    assert torch.equal(out, masked_linear(x, weight, level, [1, 3], relu=True))
    assert {"circuitcore.score_linear.default", "circuitcore.masked_linear.default"} <= set(seen)
