"""Run a traced graph with values that have shapes but no numbers, and take down its steps."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx.node import map_arg

from circuitcore.errors import InputError
from circuitcore.network.layers.inplace import in_place, overwritten
from circuitcore.network.layers.reading import Reading, Refused, Value, claim
from circuitcore.network.layers.shapes import IMAGES, Size
from circuitcore.network.layers.table import METHODS, function_reader, module_reader

ATTENTION = re.compile(r"(Attention|Attn|MHSA|SHSA|MultiQuery)\w*$")
MATRIX_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}
NO_ATTENTION = re.compile(r"^(Split|Channel|Spatial|Light\w*|Eca\w*)")


def read(r: Reading, graph: torch.fx.Graph) -> Any:
    """Every node of a graph, in order; what the output is."""
    env: dict[torch.fx.Node, Any] = {}
    trained: set[torch.fx.Node] = set()
    place = {node: k for k, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op == "placeholder":
            if not env:
                sizes = (Size(1, (("input", axis),)) for axis in (2, 3))
                env[node] = Value("input", (IMAGES, _image_channels(r, graph), *sizes))
                r.values["input"] = env[node]
            elif node.args:
                env[node] = node.args[0]  # an argument that has a default
            else:
                raise InputError(f"the model takes a second input, {node.name}: images only")
        elif node.op == "output":
            return map_arg(node.args[0], env.__getitem__)
        else:
            if any(n in trained for n in node.all_input_nodes):
                r.trained = True
            env[node] = _node(r, node, env)
            parameter = node.op == "get_attr" and isinstance(env[node], nn.Parameter)
            if parameter or (r.trained and isinstance(env[node], Tensor)):
                trained.add(node)
            r.trained = False
            if in_place(node, r.modules) and isinstance(env[node], Value):
                _overwrite(r, node, env, overwritten(node, r.modules, place))
    return None


def _overwrite(
    r: Reading, node: torch.fx.Node, env: dict[torch.fx.Node, Any], same: set[torch.fx.Node] | None
) -> None:
    """Whoever reads this memory from here on reads what the node gives."""
    if same is None:
        raise InputError(
            f"layer {_label(r)!r} overwrites a value that another layer reads in part: "
            "not supported"
        )
    for one in same & env.keys():
        env[one] = env[node]


def _image_channels(r: Reading, graph: torch.fx.Graph) -> int:
    """What the first convolution reads, if nothing but padding stands before it; or else three."""
    images = {node for node in graph.nodes if node.op == "placeholder"}
    for node in graph.nodes:
        if node.op != "call_module" or node.all_input_nodes[0] not in images:
            continue
        module = r.modules[str(node.target)]
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, nn.ZeroPad2d):
            images.add(node)
    return 3


def _node(r: Reading, node: torch.fx.Node, env: dict[torch.fx.Node, Any]) -> Any:
    """What a node gives: a value, or what is known without the images; or refuse it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    r.path = str(node.target) if node.op == "call_module" else stack[-1][0] if stack else ""
    r.name = node.name
    args = map_arg(node.args, env.__getitem__)
    kwargs = map_arg(node.kwargs, env.__getitem__)
    try:
        if node.op == "get_attr":
            return _attribute(r, str(node.target))
        return _call(r, node, args, kwargs)
    except InputError:
        raise
    except Exception as error:
        why = str(error) if isinstance(error, Refused) else "its arguments are not understood"
        raise InputError(_refusal(r, node, stack, why)) from error


def _call(r: Reading, node: torch.fx.Node, args: Any, kwargs: Any) -> Any:
    target: Any = node.target
    if node.op == "call_module":
        module = r.modules[str(target)]
        reader = module_reader(module)
        if reader is None:
            raise Refused("no layer of this kind is known")
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        claim(r, str(target), dict(own))
        return reader(r, module, *args, **kwargs)
    name = str(target) if node.op == "call_method" else getattr(target, "__name__", str(target))
    if name == "_assert":
        return None
    if not _holds([*args, *kwargs.values()], Value):
        return _computed(node, name, args, kwargs)
    found = METHODS.get(name) if node.op == "call_method" else function_reader(target)
    if name in MATRIX_PRODUCTS:
        raise Refused("it multiplies values as matrices, as attention does")
    if found is None:
        raise Refused(f"it calls {name}, which is not known")
    return found(r, *args, **kwargs)


def _computed(node: torch.fx.Node, name: str, args: Any, kwargs: Any) -> Any:
    """What no image reaches, computed at once; sizes among it stay open."""
    target: Any = node.target
    called = getattr(args[0], name) if node.op == "call_method" else target
    try:
        with torch.no_grad():
            return called(*(args[1:] if node.op == "call_method" else args), **kwargs)
    except TypeError as error:
        if _holds([*args, *kwargs.values()], Size):
            raise Refused("what it makes depends on the size of the image") from error
        raise


def read_part(r: Reading, path: str, *args: Any) -> Any:
    """A module inside one that is read whole."""
    module, before = r.modules[path], (r.path, r.name)
    reader = module_reader(module)
    if reader is None:
        raise Refused(f"its part {path!r} ({type(module).__name__}) is not known")
    r.path, r.name = path, path
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    claim(r, path, dict(own))
    found = reader(r, module, *args)
    r.path, r.name = before
    return found


def _holds(arguments: Any, kind: type) -> bool:
    return any(
        isinstance(each, kind)
        or (isinstance(each, tuple | list) and _holds(each, kind))
        or (isinstance(each, slice) and _holds([each.start, each.stop, each.step], kind))
        for each in arguments
    )


def _attribute(r: Reading, target: str) -> Any:
    owner, _, key = target.rpartition(".")
    found = getattr(r.modules[owner], key)
    if isinstance(found, Tensor):
        claim(r, owner or key, {key: found})
    return found


def _label(r: Reading) -> str:
    return r.path or type(r.modules[""]).__name__


def _refusal(r: Reading, node: torch.fx.Node, stack: list[Any], why: str) -> str:
    """The one sentence a layer is refused with, by its own name or that of the attention it is."""
    for path, _ in stack:
        if _attends(r.modules[path]):
            return _attention_sentence(path, r.modules[path])
    kind = type(r.module).__name__
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    what = kind if node.op == "call_module" else f"{name} in {kind}"
    return f"layer {_label(r)!r} ({what}) is not supported: {why}"


def _attends(module: nn.Module) -> bool:
    kind = type(module).__name__
    return bool(ATTENTION.search(kind)) and not NO_ATTENTION.search(kind)


def _attention_sentence(path: str, module: nn.Module) -> str:
    return f"layer {path!r} ({type(module).__name__}) is attention, which is not supported"


def attention_in(model: nn.Module, under: str) -> str:
    """The sentence about the first attention inside a module, if there is one."""
    for path, module in model.named_modules():
        if path.startswith(under) and _attends(module):
            return _attention_sentence(path, module)
    return ""
