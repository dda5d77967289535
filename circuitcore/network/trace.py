"""Read a torch module into a `Network`, or refuse it naming the layer that does not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from circuitcore.errors import InputError
from circuitcore.network.graph import Network, needed_steps
from circuitcore.network.interpret import attention_in, read, read_part
from circuitcore.network.layers.reading import Reading, Value, copied
from circuitcore.network.layers.table import module_reader
from circuitcore.network.stages import check_head, default_stages

# held where a module is called too: torch.fx puts its own functions in place of torch's meanwhile
tracing = Lock()


def trace(model: nn.Module) -> Network:
    """Read a module into a `Network`.

    Raises InputError naming the layer where it holds one that `network.layers` does not know, uses
    a layer with weights twice or shares a weight, does not end as `check_head` says, or has NaN or
    infinity in a weight.
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
        with tracing:
            graph = tracer.trace(model)
    except InputError:
        raise
    except Exception as error:
        attention = attention_in(model, tracer.failed)
        if attention:
            raise InputError(attention) from error
        where = f"layer {tracer.failed!r} ({tracer.kind})" if tracer.failed else "the model"
        raise InputError(
            f"{where} cannot be traced ({error}); its forward must not branch"
        ) from error
    r = Reading(dict(model.named_modules()), part=read_part)
    return _network(model, r, read(r, graph))


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


def _network(model: nn.Module, r: Reading, output: Any) -> Network:
    """What of the steps the output needs, with their tensors."""
    if not isinstance(output, Value):
        raise InputError(
            "the model returns more than one tensor: one of logits is needed; wrap it in a module "
            "whose forward returns that one alone"
        )
    kept = needed_steps(r.steps, {output.name})
    check_head(kept)
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
    single = [s.name for s in kept if s.op == "conv" and s.settings["groups"] == 1
              and weights[s.name][0, 0].numel() == 1]  # fmt: skip
    stages = default_stages(kept, single)
    head = frozenset(stages.get("fc", ()))
    return Network(tuple(kept), weights, biases, fixed, others, stages, head)


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


def check_unmade(module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Refuse to prune layers whose weight is not the one they compute with (standardisation).

    A class of one's own may make it of its parameter: then how the module is read says so.
    """
    own = {n: each for n, each in layers.items() if type(each) not in (nn.Conv2d, nn.Linear)}
    if not own:
        return
    network = trace(module)
    for name, each in own.items():
        if network.step(name).form == "remade":
            raise InputError(
                f"layer {name!r} ({type(each).__name__}) makes its weights anew at every call: "
                "setting some of them to 0 does not prune it"
            )


def check_own_tensors(name: str, module: nn.Module) -> None:
    """Refuse a layer whose weight or bias is made anew at every call, or by a hook."""
    for key in ("weight", "bias"):
        if key not in module._parameters:
            raise InputError(
                f"layer {name!r}: its {key} is made by a hook or a parametrisation (pruning, "
                f"weight or spectral norm): make it permanent first, with {_remover(module)}"
            )


def _remover(module: nn.Module) -> str:
    """What makes a tensor permanent that is made by whatever is on the module."""
    if is_parametrized(module):
        return "torch.nn.utils.parametrize.remove_parametrizations"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            return "torch.nn.utils.remove_weight_norm"
        if isinstance(hook, SpectralNorm):
            return "torch.nn.utils.remove_spectral_norm"
    return "torch.nn.utils.prune.remove or parametrize.remove_parametrizations"
