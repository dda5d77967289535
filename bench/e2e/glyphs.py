"""A thousand-way problem that needs no download: characters in free fonts, and a trained AlexNet.

``python bench/e2e/glyphs.py FOLDER`` writes an image folder in ImageNet's layout (1,000 characters;
32 training images each, 50 for validation, in fonts that training has not seen) and the weights of
a full-size torchvision AlexNet trained on such images at 64 pixels.  The network is kept in
``CIRCUITCORE_CACHE``, so that a second folder takes a minute.  ``--twin FOLDER`` writes the same
problem with 50 characters and a network of a few hundred kilobytes, as the tests have it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from glyph_images import (
    FONTS,
    UNSEEN,
    Atlas,
    choose_characters,
    drawn,
    folder_name,
    font_files,
    sheet,
    write_folder,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from circuitcore.bundled.network import SmallAlexNet
from circuitcore.bundled.train import initialise
from circuitcore.kernels.masked.paths import table_path

TRAIN, VAL = 32, 50  # images a category in the folder: 20 of VAL extract, 30 are held out
RAMP = 0.4  # of the steps
TEST = 4  # images a category, in unseen fonts, of the accuracy measured after training


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; another recipe is another file in the cache."""

    characters: int = 1000
    pixels: int = 64
    steps: int = 1600
    batch: int = 256
    rate: float = 6e-4
    dropout: float = 0.1
    hard: float = 1.0  # how hard the images are to read, in the end
    least: float = 0.40  # accuracy in unseen fonts
    seed: int = 0

    def file(self) -> Path:
        """Where the trained weights are kept."""
        key = hashlib.sha256(json.dumps([asdict(self), list(FONTS)]).encode()).hexdigest()[:8]
        return table_path().parent / f"glyphs-{self.characters}-{key}.safetensors"

    def chosen(self) -> list[str]:
        """The characters, in the order of the output units."""
        fonts = font_files({**FONTS, **UNSEEN})
        return sorted(choose_characters(fonts, self.characters, self.seed))


TWIN = Recipe(characters=50, pixels=28, steps=3000, batch=128, rate=1.5e-3, hard=0.6, least=0.6)
TWIN_WIDTH = 192  # units of the twin's hidden Linear layers
TWIN_TRAIN, TWIN_VAL = 4, 24  # 8 extract, 16 are held out


def trained(recipe: Recipe) -> Path:
    """The safetensors file of the trained network, training it first where it is missing.

    Raises FileNotFoundError naming the packages where fonts are missing, AssertionError where
    training ended below the least accuracy.
    """
    path = recipe.file()
    if path.exists():
        return path
    characters = recipe.chosen()
    began = time.perf_counter()
    network = train(recipe, Atlas.of(font_files(FONTS), characters))
    unseen = Atlas.of(font_files(UNSEEN), characters)
    reached = accuracy(network, recipe, unseen)
    print(f"{100 * reached:.1f} % in unseen fonts, {time.perf_counter() - began:.0f} s")
    assert reached >= recipe.least, f"trained badly: {reached:.3f}"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    if isinstance(network, SmallAlexNet):
        state = {name: value.half() for name, value in state.items()}
    described = {
        "categories": json.dumps([folder_name(character) for character in characters]),
        "recipe": json.dumps(asdict(recipe)),
        "accuracy": str(reached),
    }
    save_file(state, unfinished, described)
    unfinished.replace(path)
    return path


def network_of(recipe: Recipe) -> nn.Module:
    """The untrained network: torchvision's AlexNet, or for grey 28 pixels the small one."""
    if recipe.pixels >= 64:
        return alexnet(num_classes=recipe.characters, dropout=recipe.dropout)
    return SmallAlexNet(recipe.characters, recipe.dropout, TWIN_WIDTH)


def network_input(images: Tensor, network: nn.Module) -> Tensor:
    """Grey images [n, 1, h, w] in [0, 1] as the network wants them."""
    if isinstance(network, SmallAlexNet):
        return (images - 0.5) / 0.25
    own = AlexNet_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (own.mean, own.std))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


class Repeated(nn.Module):
    """AlexNet's fc6 where its input, [n, 256], is what the adaptive pooling repeats 36 times.

    At 64 pixels the last feature map is one pixel: fc6 on it is the sum of its weights over the
    36 positions, and so are the gradients, at a 36th of the cost.
    """

    def __init__(self, fc6: nn.Linear, channels: int) -> None:
        super().__init__()
        self.fc6, self.channels = fc6, channels

    def forward(self, x: Tensor) -> Tensor:
        """Pre-activations [n, 4096] of maps [n, 256]."""
        weight = self.fc6.weight.view(self.fc6.out_features, self.channels, -1).sum(2)
        return F.linear(x, weight, self.fc6.bias)


Normed = list[tuple[nn.Conv2d | nn.Linear, nn.BatchNorm1d | nn.BatchNorm2d]]


def trainable(network: nn.Module) -> tuple[nn.Sequential, Normed]:
    """The network's own layers with batch norm behind all but the last, and those pairs."""
    steps: list[nn.Module] = []
    pairs: Normed = []
    for module in (*network.features, nn.Flatten(), *network.classifier):
        if isinstance(module, nn.Linear) and module.in_features == 9216:
            steps.append(Repeated(module, 256))
        else:
            steps.append(module)
        if isinstance(module, nn.Conv2d):
            pairs.append((module, nn.BatchNorm2d(module.out_channels)))
            steps.append(pairs[-1][1])
        elif isinstance(module, nn.Linear) and module is not network.classifier[-1]:
            pairs.append((module, nn.BatchNorm1d(module.out_features)))
            steps.append(pairs[-1][1])
    return nn.Sequential(*steps), pairs


@torch.no_grad()
def fold(pairs: Normed) -> None:
    """Put every batch norm into the layer before it: what is left is the plain network."""
    for layer, norm in pairs:
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        layer.weight.mul_(gain.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.copy_((layer.bias - norm.running_mean) * gain + norm.bias)


def train(recipe: Recipe, atlas: Atlas) -> nn.Module:
    """Train on images drawn anew for every step, harder and harder until ``RAMP`` of the steps.

    AdamW, one cycle, batch norm that is folded into the weights afterwards, bfloat16 where the
    processor has it.
    """
    low = torch.cpu._is_avx512_bf16_supported()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        random = torch.Generator().manual_seed(recipe.seed)
        network = network_of(recipe)
        initialise(network)
        nn.init.normal_(network.classifier[-1].weight, std=0.002)
        run, pairs = trainable(network)
        run.to(memory_format=torch.channels_last).train()
        fc6 = [step.fc6.weight for step in run if isinstance(step, Repeated)]
        rest = [value for value in run.parameters() if not any(value is one for one in fc6)]
        # 36 weights of fc6 act as one: each is to move a 36th
        groups = [{"params": rest}, *({"params": [one], "lr": recipe.rate / 36} for one in fc6)]
        optimiser = torch.optim.AdamW(groups, recipe.rate, weight_decay=0.02, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, [group["lr"] for group in optimiser.param_groups], recipe.steps,
            pct_start=0.1,
        )  # fmt: skip
        for step in range(1, recipe.steps + 1):
            hard = recipe.hard * min(1.0, step / (RAMP * recipe.steps))
            said = torch.randint(recipe.characters, (recipe.batch,), generator=random)
            images = network_input(atlas.draw(said, recipe.pixels, random, hard), network)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                found = run(images)
            loss = F.cross_entropy(found.float(), said)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % 100 == 0:
                print(f"  step {step} of {recipe.steps}: loss {loss.item():.3f}", flush=True)
        run.eval()
        fold(pairs)
    return network.to(memory_format=torch.contiguous_format).eval()


@torch.inference_mode()
def accuracy(network: nn.Module, recipe: Recipe, atlas: Atlas) -> float:
    """Fraction of ``TEST`` images a character that are classified rightly."""
    random = torch.Generator().manual_seed(recipe.seed + 1)
    said = torch.arange(recipe.characters).repeat(TEST)
    right = 0
    for part in said.split(250):
        images = network_input(atlas.draw(part, recipe.pixels, random, recipe.hard), network)
        right += int((network(images).argmax(1) == part).sum())
    return right / len(said)


def problem(out: Path) -> tuple[Path, Path]:
    """``out/images`` and the weights of the thousand-way problem; what is there is kept."""
    recipe = Recipe()
    weights, images = trained(recipe), out / "images"
    done = out / "images-done"
    if not done.exists():
        write_folder(images, recipe.chosen(), recipe.pixels, TRAIN, VAL, recipe.seed)
        done.touch()
    return images, weights


def write_twin(out: Path) -> None:
    """The small problem: a sheet of images a character and split, and the network in float16."""
    weights, characters = trained(TWIN), TWIN.chosen()
    for split, fonts, count in (("train", FONTS, TWIN_TRAIN), ("val", UNSEEN, TWIN_VAL)):
        atlas = Atlas.of(font_files(fonts), characters)
        random = torch.Generator().manual_seed(TWIN.seed + 1000 + len(split))
        (out / split).mkdir(parents=True, exist_ok=True)
        for place, images in drawn(atlas, count, TWIN.pixels, random, TWIN.hard):
            grey = (images // 17) * 17  # 16 shades: half the bytes
            name = folder_name(characters[place])
            sheet(grey, columns=count).save(out / split / f"{name}.png", optimize=True)
    (out / "network.safetensors").write_bytes(weights.read_bytes())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--twin", action="store_true", help="the small problem of the tests")
    options = parser.parse_args(arguments)
    if options.twin:
        write_twin(options.folder)
    else:
        images, weights = problem(options.folder)
        print(f"--model file:{weights} --arch alexnet --images {images} --resize 64 --crop 64")


if __name__ == "__main__":
    main()
