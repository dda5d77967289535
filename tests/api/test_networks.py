"""Modules in hand: what a circuit leaves of them gives the activation that the run recorded."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune
from torchvision import transforms
from torchvision.transforms._presets import ImageClassification

import circuitcore as cc
from circuitcore.analysis.evaluation import prepared_run
from circuitcore.engine.passes import activations
from circuitcore.progress import Silent

SIDE = 64
NAMES = ("left", "middle", "right")
COUNTS = {"scoring_images": 2, "extraction_images": 4, "heldout_images": 6}
GRID = {"fc_levels": "0,0.3,0.6", "conv_levels": "0,0.1,0.3", "threshold": 0.5, "device": "cpu"}
NETWORKS = ("alexnet", "resnet18", "densenet121", "mobilenet_v2")
PRESET = ImageClassification(crop_size=SIDE, resize_size=SIDE + 8)
OPAQUE = transforms.Lambda(lambda image: PRESET(image) * 1.0)  # says nothing of what it does


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three categories of real PNGs: noise with one bright third, left, middle or right."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        for part, count in (("train", 2), ("val", 10)):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (SIDE + 12, SIDE + 20, 3), dtype=np.uint8)
                pixels[:, 28 * index : 28 * index + 28] += 130
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


def module_of(arch, images, seed):
    """The network with random weights, its last layer fitted to the images so that it can tell."""
    torch.manual_seed(seed)
    module = torchvision.models.get_model(arch, weights=None, num_classes=len(NAMES))
    if arch != "alexnet":  # running statistics as after some training
        module.train()
        with torch.no_grad():
            for _ in range(20):
                module(batch(images, "val")[0])
    module.eval()
    name, last = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)][-1]
    seen = []
    hook = module.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    parts = [batch(images, part) for part in ("train", "val")]
    with torch.no_grad():
        for pixels, _ in parts:
            module(pixels)
        hook.remove()
        target = nn.functional.one_hot(torch.cat([labels for _, labels in parts])).float() * 8 - 2
        hidden = torch.cat(seen)
        centred = hidden - hidden.mean(0)
        last.weight.copy_(torch.linalg.lstsq(centred, target - target.mean(0)).solution.T)
        last.bias.copy_(target.mean(0) - last.weight @ hidden.mean(0))
    return module


def batch(images, part, transform=PRESET):
    found, labels = [], []
    for unit, name in enumerate(NAMES):
        for file in sorted((images / part / name).iterdir()):
            with Image.open(file) as image:
                found.append(transform(image.convert("RGB")))
            labels.append(unit)
    return torch.stack(found), torch.tensor(labels)


@pytest.mark.parametrize(
    ("arch", "ablate"), [*((arch, "zero") for arch in NETWORKS), ("resnet18", "mean")]
)
def test_the_pruned_module_gives_the_activation_of_the_run(arch, ablate, images, tmp_path):
    module = module_of(arch, images, seed=NETWORKS.index(arch))
    model = cc.Model.of(module, PRESET, NAMES)
    run = cc.sweep(
        model, images, categories="middle", out=tmp_path / "run", ablate=ablate, **GRID, **COUNTS
    )
    circuit = run["middle"]
    assert 0 < circuit.record.circuit.pruned < 1
    heldout = torch.tensor([10 * unit + n for unit in range(3) for n in range(4, 10)])
    pixels, labels = (t[heldout] for t in batch(images, "val"))
    pruned = circuit.apply(module)
    with torch.no_grad():
        plain, said = module(pixels), pruned(pixels)[:, 1]
        with circuit.applied(module) as there:
            torch.testing.assert_close(there(pixels)[:, 1], said, rtol=0, atol=0)
        torch.testing.assert_close(module(pixels), plain, rtol=0, atol=0)
    # as the engine ran it, whatever it compacted and folded
    opened, prepared = prepared_run(run.folder, Silent(), run._given)
    own = activations(prepared.runner, prepared.heldout, 1, circuit.masks)
    torch.testing.assert_close(said - circuit.bias, own, rtol=1e-3, atol=1e-3)
    # and the record's hits and false alarms follow from it
    plain[:, 1] = -torch.inf
    hit = said > plain.max(1).values
    assert float(hit[labels == 1].float().mean()) == circuit.record.circuit.heldout.hit
    assert int(hit[labels != 1].sum()) == circuit.record.circuit.heldout.false_alarms
    # exported, in plain torch
    file, _ = circuit.export(tmp_path / "middle.safetensors")
    fresh = torchvision.models.get_model(arch, weights=None, num_classes=len(NAMES)).eval()
    fresh.load_state_dict(load_file(file))
    with torch.no_grad():
        torch.testing.assert_close(fresh(pixels)[:, 1], said, rtol=1e-4, atol=1e-4)
        # and as the smaller network that is left, which is what the engine ran
        left = circuit.compact()(pixels) - circuit.bias
        torch.testing.assert_close(left, own, rtol=1e-5, atol=1e-4)


def test_a_transform_is_split_where_that_is_exact_and_run_whole_where_not(images):
    module = module_of("resnet18", images, seed=0)
    normal = transforms.Normalize(PRESET.mean, PRESET.std)
    steps = [transforms.Resize(SIDE + 8), transforms.CenterCrop(SIDE), transforms.ToTensor()]
    for transform, kept in (
        (PRESET, "uint8"), (transforms.Compose([*steps, normal]), "uint8"),
        (OPAQUE, "float32"), (transforms.Compose(steps), "float32"),
    ):  # fmt: skip
        own = cc.Model.of(module, transform, NAMES).preprocessing
        from circuitcore.inputs.image_files import Folder

        assert Folder(images).pixels("val/left/0.png", own).dtype == kept, transform


@pytest.mark.parametrize("transform", [PRESET, OPAQUE], ids=["bytes", "floats"])
def test_bytes_and_floats_give_the_same_input(transform, images):
    from circuitcore.inputs.image_files import Folder
    from circuitcore.inputs.pixels import to_input

    own = cc.Model.of(module_of("resnet18", images, 0), transform, NAMES).preprocessing
    pixels = Folder(images).pixels("val/left/0.png", own)[None]
    with Image.open(images / "val/left/0.png") as image:
        wanted = transform(image.convert("RGB"))[None]
    assert torch.equal(to_input(pixels, own, torch.device("cpu")), wanted)


def test_what_does_not_fit_is_refused(images, tmp_path):
    module = module_of("resnet18", images, seed=0)
    with pytest.raises(cc.InputError, match="2 categories for 3 output units"):
        cc.Model.of(module, PRESET, ["a", "b"])
    with pytest.raises(cc.InputError, match="not function"):
        cc.Model.of(lambda x: x, PRESET)

    class Doubled(nn.Sequential):
        def forward(self, x):
            torch.Tensor.mul_(x.data if isinstance(x, torch.Tensor) else torch.ones(1), 2)
            return super().forward(x)

    lies = Doubled(module)
    with pytest.raises(cc.InputError, match="does something its layers do not show"):
        cc.Model.of(lies, PRESET, NAMES)
    run = cc.sweep(cc.Model.of(module, PRESET, NAMES), images, categories="left",
                   out=tmp_path / "run", levels="0,0.2", **COUNTS)  # fmt: skip
    with pytest.raises(cc.InputError, match="has no layer"):
        run["left"].apply(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(cc.InputError, match="does not fit"):
        run["left"].apply(torchvision.models.resnet34(num_classes=2))
    with pytest.raises(cc.InputError, match="weights_sha256|sha256 differs"):
        other = cc.Model.of(module_of("resnet18", images, seed=9), PRESET, NAMES)
        cc.open_run(run.folder, other, None).evaluate()


def test_weights_that_a_hook_makes_and_hooks_that_change_values_are_refused(images, tmp_path):
    module = module_of("resnet18", images, seed=0)
    hook = module.layer1.register_forward_hook(lambda _, __, out: out * 0.3)
    with pytest.raises(cc.InputError, match="does something its layers do not show"):
        cc.Model.of(module, PRESET, NAMES)
    hook.remove()
    run = cc.sweep(cc.Model.of(module, PRESET, NAMES), images, categories="left",
                   out=tmp_path / "run", levels="0,0.2", **COUNTS)  # fmt: skip
    prune.random_unstructured(module.layer1[0].conv1, "weight", 0.3)
    cc.Model.of(module, PRESET, NAMES)  # its mask is applied
    with pytest.raises(cc.InputError, match="'layer1.0.conv1': its weight is made by a hook"):
        run["left"].apply(module)
    prune.remove(module.layer1[0].conv1, "weight")
    nn.utils.parametrizations.weight_norm(module.layer1[0].conv1)
    cc.Model.of(module, PRESET, NAMES)  # read as it is
    with pytest.raises(cc.InputError, match="made by a hook or a parametrisation"):
        run["left"].apply(module)
    with pytest.raises(cc.InputError, match="meta device"):
        cc.Model.of(torchvision.models.resnet18(num_classes=3).to("meta"), PRESET)
    with pytest.raises(cc.InputError, match="give its .module"):
        cc.Model.of(nn.DataParallel(module), PRESET)


def test_transforms_that_cannot_be_are_refused(images):
    module = module_of("resnet18", images, seed=0)
    shift = transforms.Compose([transforms.RandomCrop(SIDE), transforms.ToTensor()])
    with pytest.raises(cc.InputError, match="random: two calls"):
        cc.Model.of(module, shift, NAMES)
    with pytest.raises(cc.InputError, match="the transform gave ndarray"):
        cc.Model.of(module, lambda image: np.zeros((3, 8, 8), np.float32), NAMES)
    with pytest.raises(cc.InputError, match="transform failed: division by zero"):
        cc.Model.of(module, lambda image: 1 / 0, NAMES)
    with pytest.raises(cc.InputError, match="cannot be"):
        cc.Model.of(module, 5, NAMES)
    half = module.half()
    assert cc.Model.of(half, PRESET, NAMES).network.weights["conv1"].dtype == torch.float32
