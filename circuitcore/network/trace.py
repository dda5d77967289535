"""Read a torch module into a `Network`, or refuse it naming the layer that does not fit."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx.node import map_arg
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from circuitcore.errors import InputError
from circuitcore.network.graph import Network, needed_steps
from circuitcore.network.layers.inplace import in_place, overwritten
from circuitcore.network.layers.reading import Reading, Refused, Value, claim, copied
from circuitcore.network.layers.shapes import IMAGES, Size
from circuitcore.network.layers.table import METHODS, function_reader, module_reader

ATTENTION = re.compile(r"(Attention|Attn|MHSA|SHSA|MultiQuery)\w*$")
MATRIX_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}
NO_ATTENTION = re.compile(r"^(Split|Channel|Spatial|Light\w*|Eca\w*)")


def trace(model: nn.Module) -> Network:
    """Read a module into a `Network`.

    Raises InputError naming the layer where it holds one that `network.layers` does not know, uses
    a layer with weights twice or shares a weight, does not end in a Linear, or has NaN or infinity
    in a weight.
    """
    for inner in ("_orig_mod", "module"):  # torch.compile's and DataParallel's wrappers
        if isinstance(getattr(model, inner, None), nn.Module) and len(list(model.children())) == 1:
            raise InputError(f"{type(model).__name__} wraps the network: give its .{inner}")
    model = aside(model, hooks=True)
    for name, module in model.named_modules():
        _made_plain(module)
        if isinstance(module, nn.Conv2d | nn.Linear):
            check_own_tensors(name, module)
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except InputError:
        raise
    except Exception as error:
        attention = _attention(model, tracer.failed)
        if attention:
            raise InputError(attention) from error
        where = f"layer {tracer.failed!r} ({tracer.kind})" if tracer.failed else "the model"
        raise InputError(
            f"{where} cannot be traced ({error}); its forward must not branch"
        ) from error
    r = Reading(dict(model.named_modules()), part=_read_part)
    return _network(model, r, _read(r, graph))


class _Tracer(torch.fx.Tracer):
    """Looks into every module whose class is not in the table."""

    proxy_buffer_attributes = True
    failed = kind = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = module_reader(m) is not None
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if not self.failed:
                self.failed, self.kind = self.path_of_module(m), type(m).__name__
            raise


def _read(r: Reading, graph: torch.fx.Graph) -> Any:
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


def _read_part(r: Reading, path: str, *args: Any) -> Any:
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


def _attention(model: nn.Module, under: str) -> str:
    """The sentence about the first attention inside a module, if there is one."""
    for path, module in model.named_modules():
        if path.startswith(under) and _attends(module):
            return _attention_sentence(path, module)
    return ""


def _network(model: nn.Module, r: Reading, output: Any) -> Network:
    """What of the steps the output needs, with their tensors."""
    if not isinstance(output, Value):
        raise InputError("the model returns more than one tensor: one of logits is needed")
    kept = needed_steps(r.steps, {output.name})
    if not kept or kept[-1].op != "linear" or kept[-1].name != output.name:
        end = kept[-1].name if kept else "its input"
        raise InputError(f"the model ends in {end!r}: its last layer must be a Linear")
    if any(kept[-1].name in s.inputs for s in kept):
        raise InputError(f"layer {kept[-1].name!r}: its output is read by another layer")
    names, network = {s.name for s in kept}, r.network
    weights = {k: v for k, v in network.weights.items() if k in names}
    biases = {k: v for k, v in network.biases.items() if k in names}
    plain = {f"{k}.weight" for k in weights} | {f"{k}.bias" for k in biases}
    others = {
        key: copied(tensor) if tensor.is_floating_point() else tensor.clone()
        for key, tensor in model.state_dict().items()
        if key not in plain
    }
    fixed = {k: v for k, v in network.fixed.items() if k in names}
    return Network(tuple(kept), weights, biases, fixed, others)


def aside(model: nn.Module, hooks: bool = False) -> nn.Module:
    """The module in eval mode, sharing its tensors; the one given stays as it is.

    Without ``hooks``: they would be called with the tracer's stand-ins for values.
    """
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():  # what a hook made of its parameters
        tensors += [each for each in vars(module).values() if isinstance(each, Tensor)]
    try:
        found = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except Exception as error:
        raise InputError(f"the model cannot be copied to be traced ({error})") from error
    for module in [] if hooks else found.modules():
        for each in (module._forward_hooks, module._forward_pre_hooks):
            each.clear()
    return found.eval()


@torch.no_grad()
def _made_plain(module: nn.Module) -> None:
    """Weights that a parametrisation, a weight norm or a spectral norm makes, as they are now."""
    if is_parametrized(module):
        made = {key: getattr(module, key) for key in module.parametrizations}  # type: ignore[union-attr]
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        for key, tensor in made.items():
            module.register_parameter(key, nn.Parameter(tensor.detach().clone(), False))
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            tensor = hook.compute_weight(module)
            stale = [f"{hook.name}_g", f"{hook.name}_v"]
        elif isinstance(hook, SpectralNorm):
            tensor = hook.compute_weight(module, do_power_iteration=False)
            stale = [f"{hook.name}_{key}" for key in ("orig", "u", "v")]
        else:
            continue
        for key in (*stale, hook.name):
            if hasattr(module, key):
                delattr(module, key)
        module.register_parameter(hook.name, nn.Parameter(tensor.detach().clone(), False))


def check_unmade(name: str, module: nn.Module) -> None:
    """Refuse to prune a layer whose weight is not the one it computes with (standardisation)."""
    if "Std" in type(module).__name__ and hasattr(module, "eps"):
        raise InputError(
            f"layer {name!r} ({type(module).__name__}) makes its weights anew at every call: "
            "setting some of them to 0 does not prune it"
        )


def check_own_tensors(name: str, module: nn.Module) -> None:
    """Refuse a layer whose weight or bias is made anew at every call, or by a hook."""
    for key in ("weight", "bias"):
        if key not in module._parameters:
            raise InputError(
                f"layer {name!r}: its {key} is made by a hook or a parametrisation (pruning, "
                "weight or spectral norm): make it permanent first, with "
                "torch.nn.utils.prune.remove or parametrize.remove_parametrizations"
            )
