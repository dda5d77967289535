"""How each file of a circuit is loaded in plain torch: code that a reader runs as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from circuitcore.analysis.giving.facts import kind_of
from circuitcore.analysis.giving.programs import ACTIVATION, IMAGES


def loading_code(facts: Mapping[str, Any]) -> dict[str, str]:
    """Python by file name; each is whole by itself and run in the folder of the files."""
    made = {"state": _state, "masks": _masks, "program": _program, "onnx": _onnx}
    return {name: made[kind_of(name)](name, facts) for name in sorted(facts["files"])}


def _shape(facts: Mapping[str, Any], name: str) -> str:
    shape = facts["files"][name].get("input") or facts.get("input") or ["channels", "H", "W"]
    return ", ".join(map(str, shape))


def _module(facts: Mapping[str, Any]) -> list[str]:
    """Lines that make the architecture, without weights."""
    network = facts["network"]
    kind, _, name = network["architecture"].partition(":")
    outputs = network["outputs"]
    if kind == "bundled":
        return [
            "from circuitcore.bundled.network import SmallAlexNet  # the architecture alone",
            f"module = SmallAlexNet(classes={outputs})",
        ]
    if kind == "tv":
        aux = ", init_weights=False, aux_logits=False" * (name in ("googlenet", "inception_v3"))
        return [
            "import torchvision",
            f"module = torchvision.models.get_model({name!r}, weights=None, "
            f"num_classes={outputs}{aux})",
        ]
    if kind == "timm":
        return ["import timm", f"module = timm.create_model({name!r}, num_classes={outputs})"]
    return [f"module = make_network()  # yours: what {network['name']!r} was an instance of"]


def _read(facts: Mapping[str, Any]) -> str:
    """The line that reads the activation off the module's output."""
    if facts["bias"] is None:
        return f"# of layer {facts['target'].rpartition(':')[0]!r} it has the circuit's value"
    if facts["bias_in_state"]:
        return f"activation = module(images)[:, {facts['index']}]  # with the circuit's bias"
    bias = f"{facts['bias']!r}"
    return f"activation = module(images)[:, {facts['index']}] + {bias}  # the circuit's bias"


def _state(name: str, facts: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            "import torch",
            "from safetensors.torch import load_file",
            *_module(facts),
            f"module.load_state_dict(load_file({name!r}))",
            "module.eval()",
            f"images = torch.zeros(2, {_shape(facts, name)})  # yours, preprocessed as below",
            "with torch.no_grad():",
            "    module(images)",
            f"    {_read(facts)}",
        ]
    )


def _masks(name: str, facts: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            "from safetensors.torch import load_file",
            "from torch.nn.utils import prune",
            *_module(facts),
            "# load the unpruned weights here",
            f"for weight, mask in load_file({name!r}).items():",
            '    layer = module.get_submodule(weight.removesuffix(".weight"))',
            '    prune.custom_from_mask(layer, "weight", mask)',
        ]
    )


def _program(name: str, facts: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            "import torch",
            f"circuit = torch.export.load({name!r}).module()",
            f"images = torch.zeros(2, {_shape(facts, name)})  # yours, preprocessed as below",
            "with torch.no_grad():",
            f"    activation = circuit(images)  # [2]{_biased(facts)}",
        ]
    )


def _onnx(name: str, facts: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            "import numpy",
            "import onnxruntime",
            f"circuit = onnxruntime.InferenceSession({name!r})",
            f"images = numpy.zeros((2, {_shape(facts, name)}), numpy.float32)  "
            "# yours, preprocessed as below",
            f"(activation,) = circuit.run([{ACTIVATION!r}], {{{IMAGES!r}: images}})"
            f"  # [2]{_biased(facts)}",
        ]
    )


def _biased(facts: Mapping[str, Any]) -> str:
    return "" if facts["bias"] is None else ", with the circuit's bias"
