"""Networks as their own libraries make them: built, loaded and preprocessed, by `load_model`."""

import hashlib
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import torchvision.models as tv
from PIL import Image
from torch import nn

from circuitcore.errors import InputError, UsageError
from circuitcore.inputs.in_hand import fingerprint
from circuitcore.inputs.libraries.of_torchvision import kept
from circuitcore.inputs.loading import load_model
from circuitcore.inputs.pixels import decode, to_input
from circuitcore.network.forward import forward
from circuitcore.options import Options

PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A photograph and pictures of unlike shapes."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(((301, 500), (640, 333), (97, 99))):
        coarse = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(root / f"{number}.png")
    return [PHOTOGRAPH, *sorted(root.iterdir())]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's own cache, empty; whatever asks for a download fails the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refused(*_, **__):
        raise AssertionError("a download was asked for")

    monkeypatch.setattr("torch.hub.download_url_to_file", refused)
    return tmp_path


def lay(weights, module, rename=None):
    """Put a module's state dict where torch keeps these weights; renamed: as old torch had it."""
    state = module.state_dict()
    if rename:
        floats = {k: v for k, v in state.items() if v.is_floating_point()}
        state = {rename(key): value for key, value in floats.items()}
    kept(weights).parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, kept(weights))
    return kept(weights)


def made(arch, seed=0, **settings):
    """A network with random weights and running statistics unlike those it begins with."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = tv.get_model(arch, weights=None, **settings)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module


def logits(model, files):
    own = model.preprocessing
    inputs = [to_input(decode(f, own)[None], own, torch.device("cpu")) for f in files]
    network = model.network
    return torch.cat([forward(network, {"input": x}, [network.last])[0] for x in inputs])


LIBRARY = {
    "googlenet": dict(init_weights=False, aux_logits=True, num_classes=1000),
    "mnasnet0_5": {},
    "regnet_x_400mf": {},
}


@pytest.mark.parametrize("arch", [*LIBRARY, "densenet121"])
def test_torchvisions_networks_give_its_own_logits(arch, hub, pictures):
    """With their weights in torch's cache, as published: names of layers, versions, inputs."""
    weights = tv.get_model_weights(arch)["DEFAULT"]

    def old(name):  # as published DenseNet files have it
        for kind in ("norm", "conv"):
            name = name.replace(f".{kind}1.", f".{kind}.1.").replace(f".{kind}2.", f".{kind}.2.")
        return name

    lay(weights, made(arch, **LIBRARY.get(arch, {})), old if arch == "densenet121" else None)
    model = load_model(Options(model=f"tv:{arch}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = tv.get_model(arch, weights=weights).eval()
    transform = weights.transforms()
    with torch.no_grad():
        own = torch.cat([module(transform(Image.open(f).convert("RGB"))[None]) for f in pictures])
    found = logits(model, pictures)
    spread = own.max() - own.min()
    assert (found - own).abs().max() < 1e-4 * spread and model.difference < 1e-4
    assert torch.equal(found.argmax(1), own.argmax(1))
    assert model.categories == tuple(weights.meta["categories"])
    if arch == "googlenet":  # it shifts and scales its input itself
        assert np.allclose(model.preprocessing.mean, 0.5) and np.allclose(
            model.preprocessing.std, 0.5
        )


def test_a_network_that_cannot_be_swept_is_refused_before_any_download(hub):
    with pytest.raises(InputError, match="tv:vit_b_16: ") as caught:
        load_model(Options(model="tv:vit_b_16"))
    assert "download" not in str(caught.value)


def test_weights_that_cannot_be_had_are_asked_for_by_address(hub, monkeypatch):
    def offline(*_, **__):
        raise OSError("\x1b[31mno route\x1b[0m to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(InputError) as caught:
        load_model(Options(model="tv:mnasnet0_5"))
    said = str(caught.value)
    assert "(no route to host)" in said and "https://" in said and str(hub) in said


# --- preprocessing --------------------------------------------------------------------------------


def test_torchvisions_transforms_are_followed(pictures):
    """One architecture for every distinct transform that torchvision's weights bring."""
    from circuitcore.inputs.in_hand import own_preprocessing

    seen = {}
    for arch in tv.list_models(module=tv):
        for weights in tv.get_model_weights(arch):
            seen.setdefault(repr(weights.transforms()), weights)
    assert len(seen) > 20
    small = [file for file in pictures if file.suffix == ".png"][1:]
    for weights in seen.values():
        transform = weights.transforms()
        own = own_preprocessing(transform)
        for file in small:
            found = to_input(decode(file, own)[None], own, torch.device("cpu"))
            assert torch.equal(found[0], transform(Image.open(file).convert("RGB"))), weights


def test_timms_transforms_are_followed(pictures):
    """One tag for every distinct way in which timm's convolutional networks are evaluated."""
    timm = pytest.importorskip("timm")
    from circuitcore.inputs.libraries.of_timm import own_transform

    tags = [
        t for t in timm.list_pretrained() if t.startswith(("res", "dla", "vgg", "regnet", "mobile"))
    ]
    seen = {}
    for tag in [*tags, "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384"]:
        holder = nn.Module()
        holder.pretrained_cfg = timm.get_pretrained_cfg(tag).to_dict()
        data = timm.data.resolve_model_data_config(holder)
        way = tuple(sorted((k, v) for k, v in data.items() if k not in ("mean", "std")))
        if max(data["input_size"]) <= 400:
            seen.setdefault(way, (tag, holder))
    assert len(seen) > 20 and any(dict(way)["crop_mode"] != "center" for way in seen)
    resnet = nn.Module()
    resnet.pretrained_cfg = timm.get_pretrained_cfg("resnet18.a1_in1k").to_dict()
    own = own_transform(resnet)
    assert (own.resize, own.crop, own.interpolation) == (235, 224, "bicubic")
    file = pictures[2]
    for tag, holder in seen.values():
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(holder))
        own = own_transform(holder)
        found = to_input(decode(file, own)[None], own, torch.device("cpu"))
        assert torch.equal(found[0], transform(Image.open(file).convert("RGB"))), tag


def test_timms_own_weights_are_loaded_from_the_hubs_cache(tmp_path, monkeypatch, pictures):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    torch.manual_seed(0)
    tag = "mobilenetv2_050.lamb_in1k"
    module = timm.create_model(tag).eval()
    repository = tmp_path / f"models--timm--{tag}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(module.state_dict(), snapshot / "model.safetensors")
    model = load_model(Options(model=f"timm:{tag}"))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    with torch.no_grad():
        own = torch.cat([module(transform(Image.open(f).convert("RGB"))[None]) for f in pictures])
    assert (logits(model, pictures) - own).abs().max() < 1e-4 * (own.max() - own.min())
    save_file(module.state_dict(), tmp_path / "mine.safetensors")
    asked = Options(model=f"file:{tmp_path / 'mine.safetensors'}", arch=f"timm:{tag}")
    again = load_model(asked)
    assert again.sha256 == model.sha256 and again.preprocessing == model.preprocessing
    assert any("is assumed" in note for note in again.notes)
    with pytest.raises(InputError, match="cannot be downloaded.*--arch timm:mobilenetv2_100"):
        load_model(Options(model="timm:mobilenetv2_100.ra_in1k"))


def test_the_fingerprint_tells_what_the_numbers_do_not():
    from circuitcore.inputs.pixels import Preprocessing

    one = Preprocessing(32, 28, (0.5,) * 3, (0.25,) * 3)
    other = Preprocessing(32, 28, (0.5,) * 3, (0.25,) * 3, interpolation="bicubic")
    assert fingerprint(one) == fingerprint(one) != fingerprint(other)


# --- files ----------------------------------------------------------------------------------------


def test_a_file_of_published_weights_is_known_by_its_hash_or_its_tensors(hub, monkeypatch):
    """V1 and V2 weights of one network resize differently: the file says which it is."""
    first, second = tv.MobileNet_V2_Weights.IMAGENET1K_V1, tv.MobileNet_V2_Weights.IMAGENET1K_V2
    module = made("mobilenet_v2")
    file = hub / "mine.pth"
    torch.save(module.state_dict(), file)
    asked = Options(model=f"file:{file}", arch="mobilenet_v2", allow_pickle=True)
    unknown = load_model(asked)
    assert unknown.preprocessing.resize == 232 and unknown.categories is None
    (note,) = unknown.notes
    assert "IMAGENET1K_V2 is assumed" in note and "--resize 232" in note
    lay(first, module)
    known = load_model(asked)
    assert known.preprocessing.resize == 256 and known.categories[0] == "tench"
    assert "MobileNet_V2_Weights.IMAGENET1K_V1" in known.notes[0]
    assert known.sha256 == unknown.sha256
    kept(first).unlink()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(second.value, "url", f"https://nowhere/mobilenet_v2-{digest[:8]}.pth")
    assert "IMAGENET1K_V2: loaded" in load_model(asked).notes[0]


@pytest.fixture(scope="module")
def small():
    """The bundled network's state dict, as trained."""
    from circuitcore.bundled.network import load_bundled

    return load_bundled().network.state_dict()


def read(content, folder, **more):
    """A file that holds ``content``, as a model."""
    torch.save(content, folder / "weights.pt")
    options = {"arch": "bundled", "allow_pickle": True, **more}
    return load_model(Options(model=f"file:{folder / 'weights.pt'}", **options))


FORMS = {
    "plain": lambda s: s,
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "both": lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "lightning": lambda s: {
        "state_dict": {f"model.{k}": v for k, v in s.items()} | {"loss.weight": torch.ones(3)},
        "epoch": 3,
    },
    "wrapped": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "float64": lambda s: {k: v.double() for k, v in s.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_training_leaves_around_a_state_dict_is_taken_off(form, small, tmp_path):
    model = read(FORMS[form](small), tmp_path)
    assert all(
        torch.equal(model.network.weights[k], small[f"{k}.weight"]) for k in model.network.layers()
    )
    assert model.network.weights["features.0"].dtype == torch.float32
    assert ("loss.weight" in " ".join(model.notes)) == (form == "lightning")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype, small, tmp_path):
    model = read({k: v.to(dtype) for k, v in small.items()}, tmp_path)
    for name, weight in model.network.weights.items():
        assert torch.equal(weight, small[f"{name}.weight"].to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_quantised_checkpoints_are_refused_by_name(dtype, small, tmp_path):
    state = {**small, "features.3.weight": small["features.3.weight"].to(dtype)}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(InputError, match=f"features.3.weight is {kind}: a quantised checkpoint"):
        read(state, tmp_path)


def reparametrised(how, layer):
    """Change how a layer makes its weight; the hook and parametrisation libraries of torch."""
    torch.manual_seed(0)
    new, old = nn.utils.parametrizations, nn.utils
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight norm warns that it is old
        {
            "pruned": lambda: old.prune.random_unstructured(layer, "weight", 0.4),
            "weight norm": lambda: old.weight_norm(layer),
            "weight norm, new": lambda: new.weight_norm(layer),
            "spectral norm": lambda: old.spectral_norm(layer),
            "spectral norm, new": lambda: new.spectral_norm(layer),
        }[how]()


@pytest.mark.parametrize(
    "how", ["pruned", "weight norm", "weight norm, new", "spectral norm", "spectral norm, new"]
)
def test_weights_made_by_hooks_are_made_for_good(how, small, tmp_path):
    """From the file and from the module, with the module's own values in eval mode."""
    import circuitcore as cc
    from circuitcore.bundled.network import load_bundled

    module = load_bundled().network
    for name in ("features.3", "classifier.4"):
        reparametrised(how, module.get_submodule(name))
    module.eval()
    image = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with torch.no_grad():
        own = module(image)
    for model in (cc.Model.of(module, None), read(module.state_dict(), tmp_path)):
        network = model.network
        found = forward(network, {"input": image}, [network.last])[0]
        torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)
        assert not torch.equal(network.weights["features.3"], small["features.3.weight"])
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_a_whole_module_is_read_where_it_is_trusted(small, tmp_path):
    from circuitcore.bundled.network import load_bundled

    module = load_bundled().network
    torch.save(module, tmp_path / "whole.pt")
    asked = {"model": f"file:{tmp_path / 'whole.pt'}", "arch": "bundled"}
    with pytest.raises(InputError, match="--allow-pickle"):
        load_model(Options(**asked))
    model = load_model(Options(**asked, allow_pickle=True))
    assert torch.equal(model.network.weights["features.0"], small["features.0.weight"])
    module.act = torch.nn.functional.relu  # a function: not restored, named
    torch.save(module, tmp_path / "whole.pt")
    with pytest.raises(InputError, match="needs .*relu.*state_dict"):
        load_model(Options(**asked, allow_pickle=True))


def test_what_does_not_fit_is_said_whole(small, tmp_path):
    with pytest.raises(InputError, match="it holds encoder.classifier.1.bias") as caught:
        read({f"encoder.{k}": v for k, v in small.items()}, tmp_path)
    assert "Is --arch right?" in str(caught.value)
    with pytest.raises(InputError, match="its epoch, best are no tensors; save torch's own"):
        read({"epoch": 1, "best": 0.5}, tmp_path)
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InputError, match="cannot be read as plain weights") as caught:
        load_model(Options(model=f"file:{tmp_path / 'cut.pt'}", arch="bundled", allow_pickle=True))
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="--arch timm:resnet81: no such architecture"):
        pytest.importorskip("timm")
        load_model(Options(model=f"file:{tmp_path / 'cut.pt'}", arch="timm:resnet81"))
