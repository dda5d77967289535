"""One category's circuit: its record, its masks, and the network pruned to it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from circuitcore.api.engine import engine_of
from circuitcore.errors import InputError, UsageError, nearest
from circuitcore.inputs.read import InHand
from circuitcore.machine.state import undisturbed
from circuitcore.network.trace import check_own_tensors, check_unmade
from circuitcore.progress import Progress, Silent, Told, progress_of
from circuitcore.records import Category, Found, Target
from circuitcore.runs.circuitfile import StoredCircuit, read_circuit
from circuitcore.runs.folder import RunFolder
from circuitcore.runs.means import means_in, moved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from circuitcore.analysis.giving.export import CompactFile, Exported
    from circuitcore.network.compact.module import CompactCircuit


class Masks(dict[str, Tensor]):
    """Masks by layer, which say what there is where one is asked for that is not."""

    def __missing__(self, name: str) -> Tensor:
        near = nearest(str(name), self) or f": there are {', '.join(self) or 'none'}"
        raise KeyError(f"no mask of a layer {name!r}{near}")


def _with_bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """A layer's bias; of zeros where it had none."""
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    return layer.bias


def _copied(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().clone()


class Circuit:
    """A category's circuit in a run; what it is read from stays on disk until it is asked for."""

    def __init__(self, run: RunFolder, unit: int, given: InHand) -> None:
        self._run, self._unit, self._given = run, unit, given

    @cached_property
    def _stored(self) -> StoredCircuit:
        return read_circuit(self.path)

    @property
    def path(self) -> Path:
        """The committed file.  Raises InputError where the category is not done yet."""
        return self._run.circuit_path(self._unit)

    @property
    def unit(self) -> int:
        """The output unit."""
        return self._unit

    @property
    def record(self) -> Found:
        """All that was found out about the category or target (`circuitcore.records`).

        ``record.circuit`` is None where there is none, ``record.undefined`` says why: NA.  Raises
        InputError where the file is damaged.
        """
        return self._stored.record

    @property
    def name(self) -> str:
        """The category's or target's name."""
        return self.record.category

    @property
    def masks(self) -> dict[str, Tensor]:
        """Which weights are kept, bool by layer, shaped like its weights; True is kept.

        Of the last layer the target's row alone, [1, in].  Empty where there is no circuit.  What
        is no layer of it raises a KeyError that names the nearest.
        """
        return Masks({name: mask.clone() for name, mask in self._stored.kept.items()})

    @property
    def bias(self) -> float:
        """The circuit's one bias, in units of the logit.

        Raises InputError without a circuit, UsageError for a target that is no category.
        """
        record = self._checked()
        if isinstance(record, Target) or record.circuit is None:
            raise UsageError(f"{self.name!r} is no category: its circuit has no bias")
        return record.circuit.bias

    def _checked(self) -> Found:
        """The record, where there is a circuit."""
        self._run.check_circuit(self.record)
        return self.record

    def apply(self, module: nn.Module) -> nn.Module:
        """A copy of ``module`` pruned to the circuit: masks and bias in place, all else unchanged.

        Under ``--ablate mean`` layers' biases have what their pruned weights carry on average too.

        ``module``: the network that was swept, or one of the same layers.  Output unit ``unit`` of
        the copy gives the circuit's activation plus its bias, so that in eval mode it exceeds the
        unpruned network's other logits on the images that the circuit calls its category; another
        target's unit has the circuit's value, and what lies behind it is whole.  Raises InputError
        naming the layer that does not fit, and where there is no circuit.  Where a rectifier
        follows the last layer the bias is added by a forward hook of the copy.
        """
        check_unmade(module, self._layers(module))
        try:
            pruned = copy.deepcopy(module)
        except Exception as error:
            raise InputError(f"the module cannot be copied ({error}); see `applied`") from error
        self._prune(pruned)
        return pruned

    def _add_bias(self, module: nn.Module, given: Any, output: Tensor) -> Tensor:
        """A forward hook: the circuit's bias on its unit."""
        output = output.clone()
        output[:, self._unit] += self.bias
        return output

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[nn.Module]:
        """``module`` itself pruned to the circuit inside a with block, and put back at its end."""
        self._checked()  # refused before anything is touched where there is no circuit
        layers = self._layers(module)
        check_unmade(module, layers)
        weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
        last = self._shifted(module, layers)
        touched = [*layers.values(), *([] if last is None else [last])]
        biases = [(layer, layer.bias, _copied(layer.bias)) for layer in touched]
        hook = None
        try:
            hook = self._prune(module)
            yield module
        finally:
            if hook is not None:
                hook.remove()
            with torch.no_grad():
                for name, layer in layers.items():
                    layer.weight.copy_(weights[name])
                for layer, own, bias in biases:
                    layer.bias = own
                    if own is not None and bias is not None:
                        own.copy_(bias)

    def export(
        self, out: str | Path | None = None, *, onnx: bool = False,
        progress: Progress | Told | None = None, **engine: Any,
    ) -> Exported:  # fmt: skip
        """Write the pruned network's state dict, and beside it masks for ``torch.nn.utils.prune``.

        Returns both paths, and the card's as ``.card`` (`analysis.giving.export`); without ``out``
        they are in the run folder.  Each file is read back and held against the run's activations
        on its held-out images.  ``onnx``: the compacted circuit too, for images of the run's size
        (extra ``onnx``); ``engine``: device (the CPU without), gpu, impl, memory, no_fallback.
        Raises InputError where the run's model is not there, UsageError where the extra is not
        installed.
        """
        from circuitcore.analysis.giving.export import export

        with undisturbed():
            file, told = None if out is None else Path(out), progress_of(progress)
            return export(
                self._run, self._unit, self._given, file, told, onnx=onnx, **engine_of(engine)
            )

    def compact(self, size: tuple[int, int] | None = None) -> CompactCircuit:
        """The circuit as a smaller dense network, a module of torch.

        Images [N, C, H, W], preprocessed as the network's, to float32 [N]: the target's activation
        plus the circuit's bias.  ``size``: H and W of images, those of the run without; it takes no
        others.  On the CPU, in eval mode; what is left of the weights are its parameters.  Raises
        InputError where the run's model is not there, or the size of its images cannot be known.
        """
        from circuitcore.analysis.giving.sample import image_shape
        from circuitcore.analysis.giving.subject import compact_module, subject_of

        with undisturbed():
            subject = subject_of(self._run, self._unit, self._given)
            channels = subject.network.channels
            shape = image_shape(subject) if size is None else (channels, *size)
            return compact_module(subject, shape)

    def write_compact(
        self, out: str | Path | None = None, *, timed: bool = True,
        progress: Progress | Told | None = None, **engine: Any,
    ) -> CompactFile:  # fmt: skip
        """Write `compact` as a program that torch alone runs (``torch.export.load``), with a card.

        ``timed``: measure it beside the unpruned network, on the CPU or the device given.  Returns
        paths and numbers (`analysis.giving.export.CompactFile`); without ``out`` they are in the
        run folder.  Read back and held against the run as `export` does.
        """
        from circuitcore.analysis.giving.export import compact

        with undisturbed():
            file, told = None if out is None else Path(out), progress_of(progress)
            return compact(
                self._run, self._unit, self._given, file, told, timed=timed, **engine_of(engine)
            )

    def plot(self, *, top: int | None = None, image: str | int | None = None) -> Axes:
        """The circuit, drawn layer by layer with what its units see: `jobs.showing.drawing`.

        ``top``: units of a layer; ``image``: the number of an extraction image of the category, or
        a file, that the circuit is shown.  Returns the axes of a figure of its own; units of the
        axes are inches.  Raises InputError where the run's model or images are not there.
        """
        from circuitcore.jobs.showing import MOST_UNITS, drawing, opened_run

        with undisturbed():
            opened = opened_run(self._run.folder, Silent(), self._given)
            most = MOST_UNITS if top is None else top
            asked = None if image is None else str(image)
            return drawing(opened, self._unit, top=most, image=asked)[2].axes[0]

    @property
    def _last(self) -> str:
        return str(self._run.manifest["model"]["last"])

    def _layer(self, module: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
        """The module's layer of this name, if the circuit fits it."""
        try:
            found = module.get_submodule(name)
        except AttributeError:
            raise InputError(f"the module has no layer {name!r}, which is pruned") from None
        wanted = tuple(self._stored.kept[name].shape)
        weight = getattr(found, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
        if name == self._last:
            outputs = self._run.manifest["model"]["outputs"]
            shape = (1, *shape[1:]) if shape[:1] == (outputs,) else ()
        if isinstance(found, nn.Linear) and len(wanted) == 4:
            shape = (*shape, 1, 1)  # one on [N, H, W, C] is a convolution of one tap
        if not isinstance(found, nn.Conv2d | nn.Linear) or shape != wanted:
            raise InputError(f"layer {name!r} of the module does not fit the circuit's {wanted}")
        check_own_tensors(name, found)
        return found

    def _layers(self, module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
        """All that are pruned.  Raises InputError naming one that the circuit does not fit."""
        return {name: self._layer(module, name) for name in self._stored.kept}

    def _shifted(
        self, module: nn.Module, layers: dict[str, nn.Conv2d | nn.Linear]
    ) -> nn.Conv2d | nn.Linear | None:
        """The last layer, which has the circuit's bias though it be left whole itself."""
        if self._last in layers:
            return layers[self._last]
        try:
            found = module.get_submodule(self._last)
        except AttributeError:
            return None
        return found if isinstance(found, nn.Conv2d | nn.Linear) else None

    @torch.no_grad()
    def _prune(self, module: nn.Module) -> RemovableHandle | None:
        """Masks and bias in place; the hook that adds the bias, where no layer has room for it."""
        record = self._checked()
        layers, means = self._layers(module), means_in(self._run.folder, self._run.manifest)
        for name, kept in self._stored.kept.items():
            weight = layers[name].weight
            part = slice(self._unit, self._unit + 1) if name == self._last else slice(None)
            rows = weight[part]
            pruned = ~kept.to(rows.device).view_as(rows)
            if name in means:
                _with_bias(layers[name])[part] += moved(rows, pruned, means[name])
            rows.masked_fill_(pruned, 0)
        if isinstance(record, Target):
            return None
        if not self._run.manifest["model"].get("shifts", True):
            return module.register_forward_hook(self._add_bias)
        last = self._shifted(module, layers)
        if last is None:
            raise InputError(f"the module has no layer {self._last!r}, whose bias is the circuit's")
        _with_bias(last)[self._unit] += self.bias
        return None

    def __eq__(self, other: object) -> bool:
        """Whether it is the same committed file."""
        return isinstance(other, Circuit) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    def __repr__(self) -> str:
        record, circuit = self.record, self.record.circuit
        if circuit is None:
            return f"Circuit of {self.name!r}: none (NA)"
        said = (
            f"Circuit of {self.name!r}: {circuit.pruned:.2%} pruned, {circuit.kept_weights:,} "
            "weights kept, held-out "
        )
        if isinstance(record, Category) and record.circuit is not None:
            own = record.unpruned.heldout.csa
            return f"{said}CSA {record.circuit.heldout.csa:.3f} against {own:.3f} unpruned"
        if isinstance(record, Target) and record.circuit is not None:
            value = record.circuit.heldout
            return f"{said}{record.judge} {'NA' if value is None else f'{value:.3f}'}"
        return said

    def _repr_html_(self) -> str:
        from circuitcore.api.table import Table

        head = f"{self!r}".partition(":")[0]
        rows = [
            {"layer": name, "kept": int(mask.sum()), "of": mask.numel()}
            for name, mask in self._stored.kept.items()
        ]
        from html import escape

        return f"<p>{escape(repr(self))}</p>{Table(rows)._repr_html_() if rows else head}"
