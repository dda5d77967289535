"""Full-size networks at 224 pixels, shapes alone: no launch reaches a limit, in grid or offsets."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pretend.device import pretended

import circuitcore
from circuitcore.inputs.models import Model
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.kernels.first_conv.operation import first_conv
from circuitcore.kernels.levels.layer import LayerScores
from circuitcore.kernels.levels.operation import assign_levels, score_range
from circuitcore.kernels.masked_linear import operation
from circuitcore.kernels.masked_linear.operation import masked_linear
from circuitcore.kernels.masked_weights.operation import masked_weights
from circuitcore.kernels.overlap.operation import overlap_counts
from circuitcore.kernels.random_masks.operation import random_masks
from circuitcore.kernels.score_conv.operation import score_conv
from circuitcore.kernels.score_linear.operation import score_linear
from circuitcore.network.trace import trace

CATEGORIES = ("a", "b", "c")
WIDE = {  # what kernels reach with 64-bit offsets; everything else must lie within 2^31 elements
    "masked_linear_kernel": {"x", "weight", "level", "out"},
    "first_conv_blocks_kernel": {"pixels", "out"},
    "score_linear_kernel": {"weight", "out"},
    "levels_range_kernel": {"weight"},
    "levels_histogram_kernel": {"weight", "trie"},
    "levels_byte_kernel": {"weight", "trie", "level"},
    "overlap_pairs_kernel": {"words"},
    "masked_weights_kernel": {"out"},
    "random_masks_write_kernel": {"out"},
    "score_conv_wgrad_kernel": {"x", "g", "partial"},  # an image or a chunk apart
    "score_conv_map_kernel": {"weight", "x", "g", "partial"},
}


def within_limits(launches):
    """Grids are checked as they are launched; here how far 32-bit offsets reach."""
    assert launches
    for taken in launches:
        wide = WIDE.get(taken.kernel, set())
        for name, elements in taken.elements.items():
            assert elements < 2**31 or name in wide, (taken.kernel, name, elements)
        integers = taken.integers
        if taken.kernel.startswith("score_conv"):  # within an image offsets are of 32 bits
            assert integers["P"] * integers["filters"] < 2**31
            assert integers["H"] * integers["W"] * integers["channels"] < 2**31
        assert all(abs(value) < 2**31 for value in integers.values()), taken


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 6)):
        for name in CATEGORIES:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 255, (224, 224, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    return root


def model_of(name):
    """A network of torchvision with constant weights: nobody looks at them."""
    with torch.device("meta"):
        module = getattr(torchvision.models, name)(num_classes=len(CATEGORIES))
    module = module.to_empty(device="cpu").eval()
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data.fill_(0.01)
    own = Preprocessing(None, None, (0.5,) * 3, (0.5,) * 3)
    return Model(name, trace(module), "0" * 64, CATEGORIES, own)


def numbers(place, ghost):
    """Logits by which the unpruned network is right, and activations drawn at random."""
    drawn = torch.randn(ghost.shape, generator=torch.Generator().manual_seed(ghost.numel()))
    if place.startswith("engine/unpruned.py") and ghost.shape[1:] == (len(CATEGORIES),):
        each = len(ghost) // len(CATEGORIES)
        drawn += 8 * torch.eye(len(CATEGORIES)).repeat_interleave(each, 0)
    return drawn


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet50", "mobilenet_v2", "densenet121"])
def test_a_sweep_of(name, images, tmp_path):
    few = {"scoring_images": 2, "extraction_images": 4, "heldout_images": 2, "random_masks": 0}
    with pretended(host=numbers) as cuda:
        run = circuitcore.sweep(
            model_of(name), images, categories="b", out=tmp_path / "run", device="cuda:1",
            levels="0,0.9,0.999", **few,
        )  # fmt: skip
    within_limits(cuda.counts.launches)
    assert run["b"].record.stages and cuda.touched == {1}
    for stage in run["b"].record.stages:  # level bytes are real: so much is pruned
        for level, fraction in zip(stage.levels, (0, 0.9, 0.999), strict=False):
            assert level.pruned == pytest.approx(fraction, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_at_the_sizes_of_large_runs(dtype, monkeypatch):
    """VGG's layers with 8,192 images and 32 levels, 100 scoring images, 1,000 circuits."""
    monkeypatch.setattr(operation, "tf32_allowed", lambda: True)
    with pretended(memory=10**13, host=numbers) as cuda, torch.inference_mode():
        fc6, conv = (torch.empty(shape, device="cuda") for shape in ((4096, 25088), (64, 64, 3, 3)))
        level = torch.zeros(fc6.shape, dtype=torch.uint8, device="cuda")
        x, low = torch.empty(8192, 25088, device="cuda", dtype=dtype), fc6.to(dtype)
        out = masked_linear(x, low, level, range(32), None, relu=True, impl="triton")
        assert out.shape == (32, 8192, 4096)
        pixels = torch.empty(50_000, 3, 224, 224, dtype=torch.uint8, device="cuda")
        index = torch.empty(512, dtype=torch.int32, device="cuda")
        first, mean = (torch.empty(s, device="cuda", dtype=t) for s, t in (
            ((64, 3, 11, 11), dtype), ((3,), torch.float32)
        ))  # fmt: skip
        options = {"mean": mean, "std": mean, "stride": (4, 4), "padding": (2, 2), "relu": True}
        out = first_conv(pixels, first, index=index, **options)
        assert out.shape == (512, 64, 55, 55)
        ts = torch.arange(32, dtype=torch.int32, device="cuda")
        assert masked_weights(fc6, level, ts, impl="triton").numel() > 2**31
        counts = torch.zeros(24, dtype=torch.int64, device="cuda")
        masks = random_masks(counts, [fc6.numel()] * 24, [0] * 48, impl="triton")
        assert sum(mask.numel() for mask in masks) > 2**31
        few, g = (torch.empty(100, size, device="cuda") for size in (25088, 4096))
        score_linear(fc6, few, g)
        scores = LayerScores(fc6, left=g, right=few)
        assert score_range(scores)[0] < 0.01
        assign_levels([scores], [0, 1000, 10**8])
        maps = torch.empty(100, 64, 224, 224, device="cuda")
        for granularity in ("weight", "kernel"):
            score_conv(conv, maps, maps, padding=(1, 1), granularity=granularity)
    within_limits(cuda.counts.launches)
    seen = {taken.kernel for taken in cuda.counts.launches}
    assert seen >= WIDE.keys() - {"overlap_pairs_kernel"}


def test_overlap_of_a_thousand_circuits():
    with pretended() as cuda:
        overlap_counts(torch.zeros(1000, 16, dtype=torch.uint8, device="cuda"))
    within_limits(cuda.counts.launches)
