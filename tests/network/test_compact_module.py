"""A compacted circuit as a module, and as the program that is saved of it, against plain torch.

The reference is the module itself with the pruned weights set to 0, in float64.  In float32 what is
left may be off by twice what torch itself is off there.
"""

import copy
import io

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from served_layers import SERVED
from served_modules import SIDE, WIDTH
from torch import nn

from circuitcore.engine.passes import compacted
from circuitcore.errors import InputError
from circuitcore.network.compact.module import CompactCircuit, exported
from circuitcore.network.repeats import repeats_of
from circuitcore.network.trace import trace

BIAS, UNIT = -0.75, 1
NO_ONNX = {"adaptive_maxpool"}  # torch's exporter knows it for windows of one size alone


class Block(nn.Module):
    """One of the things that networks are built of, on ``width`` channels."""

    def __init__(self, kind, width):
        super().__init__()
        self.kind = kind
        groups = {"grouped": 2, "depthwise": width}.get(kind, 1)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=kind != "normed")
        self.norm = nn.BatchNorm2d(width) if kind in ("normed", "residual") else nn.Identity()
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if kind == "pooled" else nn.Identity()

    def forward(self, x):
        y = self.pool(torch.relu(self.norm(self.conv(x))))
        if self.kind == "joined":
            y = torch.cat([y, y.sigmoid()], 1)[:, ::2]
        return torch.relu(x + y) if self.kind == "residual" else y


class Small(nn.Module):
    def __init__(self, kinds, width, grid, deep):
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, stride=2, padding=2)
        self.blocks = nn.Sequential(*(Block(kind, width) for kind in kinds))
        self.pool = nn.AdaptiveAvgPool2d(grid)
        rest = [nn.Linear(width * grid**2, 7), nn.ReLU()] if deep else []
        self.head = nn.Sequential(*rest, nn.Linear(7 if deep else width * grid**2, 3))

    def forward(self, x):
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


def random_circuit(network, density, units, whole, seed):
    """Masks of every layer; of the channels and units ``units`` keep anything."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for number, name in enumerate(network.layers()):
        shape = network.relevant_shape(name)
        mask = torch.rand(shape, generator=generator) < density
        if name != network.last:
            mask &= (torch.rand(shape[0], generator=generator) < units).view(
                -1, *[1] * (len(shape) - 1)
            )
        kept[name] = mask | (whole and number % 2 == 0)
    return kept


def pruned(module, network, kept):
    """The module with the masks in place, in float64; what is pruned may be NaN before."""
    module = copy.deepcopy(module).double()
    with torch.no_grad():
        for name, mask in kept.items():
            weight = module.get_submodule(name).weight
            rows = weight[UNIT : UNIT + 1] if name == network.last else weight
            rows.masked_fill_(~mask.view_as(rows), 0)
    return module


def spoiled(network, kept):
    """Pruned weights that are NaN or infinite: they are not there, whatever they are."""
    for name, mask in kept.items():
        weight = network.weights[name]
        rows = weight[UNIT : UNIT + 1] if name == network.last else weight
        places = (~mask.view_as(rows)).nonzero()
        for place, value in zip(places[:3], (torch.nan, torch.inf, -torch.inf), strict=False):
            rows[tuple(place)] = value


@example(kinds=["depthwise"], deep=True, grid=3, density=0.0, units=1, whole=False, seed=0)
@example(kinds=["residual"], deep=False, grid=1, density=1.0, units=1, whole=False, seed=1)
@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    kinds=st.lists(
        st.sampled_from(["plain", "grouped", "depthwise", "normed", "residual", "pooled",
                         "joined"]), max_size=4),
    deep=st.booleans(),
    grid=st.integers(1, 6),
    density=st.sampled_from([0, 0.05, 0.3, 0.8, 1]),
    units=st.sampled_from([0.2, 0.6, 1]),
    whole=st.booleans(),
    seed=st.integers(0, 10_000),
)  # fmt: skip
def test_any_circuit_gives_what_the_pruned_network_gives(
    kinds, deep, grid, density, units, whole, seed
):
    torch.manual_seed(seed)
    plain = Small(kinds, 6, grid, deep).eval()
    for name, tensor in plain.state_dict().items():
        if "running" in name or tensor.dim() == 1 and tensor.is_floating_point():
            tensor.uniform_(0.3, 1.5)
    shape = 2, 9, 11
    images = torch.randn(4, *shape)
    kept = random_circuit(trace(plain), density, units, whole, seed)
    with torch.no_grad():
        want = pruned(plain, trace(plain), kept)(images.double())[:, UNIT] + BIAS
        plainly = pruned(plain, trace(plain), kept).float()(images)[:, UNIT] + BIAS
    torchs = float((plainly.double() - want).abs().max())
    for dtype, allowed in ((torch.float64, 1e-11), (torch.float32, 2 * torchs + 1e-6)):
        network = trace(copy.deepcopy(plain)).to("cpu", dtype)
        spoiled(network, kept)
        with torch.no_grad():
            blank = {"input": torch.zeros(1, *shape, dtype=dtype)}
            found = compacted(network, UNIT, kept, blank, repeats_of(network, shape))
            module = CompactCircuit(found, BIAS, shape)
            given = module(images.to(dtype))
        assert given.dtype == dtype
        scale = max(1, float(want.abs().max()))
        assert float((given.double() - want).abs().max()) <= allowed * scale


class Between(nn.Module):
    """``body`` of the maps of one convolution, read by the next."""

    def __init__(self, body, images):
        super().__init__()
        self.a, self.body = nn.Conv2d(2, WIDTH, 3, padding=1), body
        self.double().eval()
        with torch.no_grad():
            channels = body(self.a(images)).shape[1]
        self.b, self.last = nn.Conv2d(channels, 5, 3, padding=1), nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        return self.last(torch.relu(self.b(self.body(self.a(x)))).mean((2, 3)))


def circuit_through(body, seed):
    """(images, module): a circuit of a network in which a layer stands, some channels dead."""
    torch.manual_seed(seed)
    images = torch.randn(5, 2, *SIDE, dtype=torch.float64)
    network = trace(Between(body, images))
    kept = random_circuit(network, 0.6, 0.8, False, seed)
    with torch.no_grad():
        found = compacted(network, UNIT, kept, {"input": torch.zeros_like(images[:1])})
        return images, CompactCircuit(found, BIAS, images.shape[1:])


def drawn(op, examples):
    """Call a function with bodies of a kind of layer."""
    return lambda check: settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(given(body=SERVED[op], seed=st.integers(0, 10_000))(check))()  # fmt: skip


@pytest.mark.parametrize("op", SERVED)
def test_a_saved_program_takes_any_number_of_images_whatever_the_layers(op):
    @drawn(op, 1)
    def check(body, seed):
        images, module = circuit_through(body, seed)
        content = io.BytesIO()
        torch.export.save(exported(module, module.shape), content)
        content.seek(0)
        again = torch.export.load(content).module()
        with torch.no_grad():
            for count in (1, 2, 5):
                torch.testing.assert_close(again(images[:count]), module(images[:count]))


@pytest.mark.slow
@pytest.mark.parametrize("op", SERVED)
def test_onnx_of_every_layer(op):
    """Of few of them in `tests/analysis/test_giving.py`: a file takes seconds."""
    from circuitcore.analysis.giving.programs import onnx_bytes, onnx_in

    @drawn(op, 2)
    def check(body, seed):
        images, module = circuit_through(body, seed)
        module, images = module.float(), images.float()
        try:
            content = onnx_bytes(module)
        except InputError as error:
            assert op in NO_ONNX and "cannot be written as ONNX: No ONNX function" in str(error)
            return
        run = onnx_in(content)
        with torch.no_grad():
            for count in (1, 5):
                torch.testing.assert_close(
                    run(images[:count]), module(images[:count]), rtol=1e-4, atol=1e-4
                )


def test_a_circuit_that_no_image_changes_is_a_constant():
    network = trace(Small(["plain"], 6, 2, True).eval())
    kept = {n: torch.zeros(network.relevant_shape(n), dtype=torch.bool) for n in network.layers()}
    with torch.no_grad():
        found = compacted(network, UNIT, kept, {"input": torch.zeros(1, 2, 9, 9)})
        module = CompactCircuit(found, BIAS, (2, 9, 9))
        want = network.biases[network.last][UNIT] + BIAS
        for count in (1, 3):
            assert torch.equal(module(torch.randn(count, 2, 9, 9)), want.expand(count))
        assert torch.equal(
            exported(module, (2, 9, 9)).module()(torch.randn(4, 2, 9, 9)), want.expand(4)
        )
    assert module.multiply_adds == 0 and not module.parts


def test_it_is_a_module_like_any_other(tmp_path):
    images, module = circuit_through(nn.ReLU(), 3)
    assert module.multiply_adds > 0
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for each in copied.parameters():
            each.zero_()
        want = module(images)
    assert not torch.equal(copied(images), want)
    copied.load_state_dict(module.state_dict())
    torch.testing.assert_close(copied(images), want, rtol=0, atol=0)
    assert copied.float()(images.float()).dtype == torch.float32
    shown = images.clone().requires_grad_()
    module(shown).sum().backward()
    assert shown.grad is not None and shown.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"images are \[N, 2, 7, 9\] here, not \[5, 2, 8, 9\]"):
        module(torch.zeros(5, 2, 8, 9))
    assert "conv" in repr(module) and "multiply-adds" in repr(module)
