"""The card of a circuit that is given away: what it is, its numbers, how to load it; Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuitcore.analysis.giving.facts import kind_of
from circuitcore.analysis.giving.loading import loading_code
from circuitcore.errors import one_line

MEANT = {
    "state": "state dict of the whole network, pruned to the circuit",
    "masks": "0/1 masks of the weights, for `torch.nn.utils.prune`",
    "program": "the circuit compacted, a program that torch alone runs (`torch.export`)",
    "onnx": "the circuit compacted, as ONNX",
}
CARRIED = (
    "Pruned weights carry the mean of their inputs (`--ablate mean`): that is in biases of every "
    "file but the masks, which alone do not give the circuit's activations."
)
MASKS_ALONE = "Masks alone do not hold the circuit's bias."


def card_text(facts: Mapping[str, Any]) -> str:
    """The card, from `facts.facts_of` with its files."""
    network, what = facts["network"], "category" if "category" in facts else "target"
    parts = [
        f"# The circuit of {said(facts[what])} in {said(network['name'])}",
        _about(facts, what),
        "## Numbers\n\n" + (_accuracy(facts) if what == "category" else _agreement(facts)),
        "## Weights kept\n\n" + _layers(facts["layers"]),
        "## Files\n\n" + _files(facts),
        *([f"## Speed\n\n{speed_text(facts['speed'])}"] if "speed" in facts else []),
        "## Loading\n\n" + _loading(facts),
        "## Preprocessing\n\n" + _preprocessing(facts["preprocessing"]),
        "## Options\n\n" + _options(facts),
    ]
    return "\n\n".join(parts) + "\n"


def said(text: object) -> str:
    """A name on one line of Markdown, none of whose characters is markup."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#&" else c for c in one_line(text))


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _about(facts: Mapping[str, Any], what: str) -> str:
    network = facts["network"]
    rows = [
        (what, said(facts[what])),
        ("output unit" if what == "category" else "unit", facts["index"]),
        ("network", said(network["name"])),
        ("sha256 of its weights", f"`{network['weights_sha256']}`"),
        ("licence of its weights", said(network["licence"])),
        ("bias of the circuit", "none" if facts["bias"] is None else repr(facts["bias"])),
        ("found with", f"circuitcore {facts['versions']['circuitcore']}, "
                       f"torch {facts['versions']['torch']}"),
        ("key of the unit", f"`{facts['key']}`"),
    ]  # fmt: skip
    text = _table(["", ""], rows)
    if what == "category":
        text += (
            "\n\nAn image is called the category where the activation with the circuit's bias is "
            "above every other\nlogit of the *unpruned* network."
        )
    return text + (f"\n\n{CARRIED}" if facts["options"].get("ablate") == "mean" else "")


def _number(value: float | None) -> str:
    return "NA" if value is None else f"{value:.3f}"


def _between(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f" (95 %: {ends[0]:.3f} to {ends[1]:.3f})"


def _accuracy(facts: Mapping[str, Any]) -> str:
    """Held-out and extraction accuracy between floor (empty) and ceiling (unpruned)."""
    numbers, images = facts["numbers"], facts["images"]
    unpruned, circuit = numbers["unpruned"], numbers["circuit"]
    rows = [
        ("unpruned network (ceiling), bias 0", unpruned["extraction"], unpruned["heldout"]),
        ("unpruned network, its own bias", unpruned["extraction_biased"],
         unpruned["heldout_biased"]),
        ("**the circuit**", circuit["extraction"], circuit["heldout"]),
    ]  # fmt: skip
    if empty := numbers.get("empty"):
        rows.append(("empty circuit (floor)", empty["extraction"], empty["heldout"]))
    rows += [
        (f"control: {said(row['control'])}", row["extraction"], row["heldout"])
        for row in facts["controls"]
        if row["control"] not in ("circuit", "empty")
    ]
    cells = [
        (name, *(f"{one['hit']:.3f} / {one['false_alarms']} / {one['csa']:.3f}" for one in both))
        for name, *both in rows
    ]
    heads = [f"{part} ({images[name]} images)"
             for part, name in (("extraction", "extraction"), ("held out", "heldout"))]  # fmt: skip
    heldout = circuit["heldout"]
    lines = [
        "Hit rate / false alarms (a count) / circuit substitution accuracy, CSA:\n",
        _table(["", *heads], cells),
        "",
        "- held-out CSA over the unpruned network's at its own bias: "
        f"{_number(heldout['csa_ratio_biased'])}{_between(heldout['csa_ratio_biased_ci95'])}",
    ]
    if faithful := numbers.get("faithfulness"):
        lines.append(
            "- held-out faithfulness, 0 the empty circuit and 1 the unpruned network: "
            f"{_number(faithful['heldout'])}{_between(faithful['heldout_ci95'])}"
        )
    if masks := numbers.get("random_masks"):
        lines.append(
            f"- random masks of the same densities that do as well on the extraction images: "
            f"{masks['as_good']} of {masks['masks']}"
        )
    if not facts["controls"]:
        lines.append("- control circuits: none were run (`circuitcore controls RUN`)")
    return "\n".join(lines)


def _agreement(facts: Mapping[str, Any]) -> str:
    """How well a target's values follow the unpruned network's."""
    numbers = facts["numbers"]
    circuit, masks = numbers["circuit"], numbers.get("random_masks")
    rows = [("unpruned network (ceiling)", "1.000", "1.000")]
    for name, one in (("**the circuit**", circuit), ("best random mask", masks)):
        if one is not None:
            out = f"{_number(one['heldout'])}{_between(one['heldout_ci95'])}"
            rows.append((name, _number(one["extraction"]), out))
    rows += [
        (f"control: {said(r['control'])}", _number(r["extraction"]), _number(r["heldout"]))
        for r in facts["controls"]
        if r["control"] != "circuit"
    ]
    return f"How well its values follow the unpruned network's ({numbers['judge']}):\n\n" + _table(
        ["", "extraction", "held out"], rows
    )


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    kept, every = (sum(each[name] for each in layers) for name in ("kept", "of"))
    named = [{**each, "layer": f"`{each['layer']}`"} for each in layers]
    total = {"layer": "all", "kept": kept, "of": every}
    rows = [
        (each["layer"], f"{each['kept']:,}", f"{each['of']:,}",
         f"{100 * each['kept'] / each['of']:.2f} %")
        for each in [*named, total]
    ]  # fmt: skip
    return _table(["layer", "kept", "of", ""], rows) + (
        "\n\nOf the last layer the target's row alone is counted."
    )


def _files(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, each in sorted(facts["files"].items()):
        check = each.get("checked")
        tried = "against the run's masks, each bit" if kind_of(name) == "masks" else "not tried"
        if check:
            tried = f"within {check['largest_difference']:.1e} on {check['of']}"
            if check.get("hits") is not None:
                tried += f"; {check['hits']} hits, {check['false_alarms']} false alarms"
        rows.append((f"`{name}`", MEANT[kind_of(name)], f"{each['bytes']:,}", tried))
    text = _table(["file", "holds", "bytes", "read back and held against the run"], rows)
    return text + "".join(f"\n\nsha256 of `{n}`: `{e['sha256']}`"
                          for n, e in sorted(facts["files"].items()))  # fmt: skip


def speed_text(speed: Mapping[str, Any]) -> str:
    """Both in words, with what they were measured by."""
    mine, whole = speed["circuit_multiply_adds"], speed["network_multiply_adds"]
    by_work = f"{whole / mine:.2f} times fewer" if mine else "none at all"
    low, middle, high = speed["ratio"]
    seconds = {n: "{1:.4g} s ({0:.4g} to {2:.4g})".format(*speed[f"{n}_seconds"])
               for n in ("circuit", "network")}  # fmt: skip
    return (
        f"{middle:.2f} times ({low:.2f} to {high:.2f}, quartiles) as fast as the unpruned network "
        f"up to the same\ntarget, compacted and exported alike: {seconds['circuit']} against "
        f"{seconds['network']}\na batch of {speed['batch']}, {speed['rounds']} rounds in turn, on "
        f"{said(speed['device'])}, {speed['threads']} threads, torch {speed['torch']}.\n"
        f"Multiply-adds of an image: {mine:,} of {whole:,}, {by_work}.\n\n    {speed['command']}"
    )


def _loading(facts: Mapping[str, Any]) -> str:
    blocks = [f"`{name}`:\n\n```python\n{code}\n```" for name, code in loading_code(facts).items()]
    if any(kind_of(name) == "masks" for name in facts["files"]) and facts["bias"] is not None:
        blocks.append(MASKS_ALONE)
    return "\n\n".join(blocks)


def _preprocessing(own: Mapping[str, Any]) -> str:
    if own["ready"]:
        return "Images come as tensors that are the network's input."
    steps = [f"{own['channels']} channel{'s' * (own['channels'] > 1)}"]
    if own["transform"]:
        listed = own["transform"]
        steps.append("transform: " + said(listed if isinstance(listed, str) else "; ".join(listed)))
    if own["resize"]:
        steps.append(f"shorter side resized to {own['resize']} ({own['interpolation']})")
    if own["crop"]:
        steps.append(f"{own['crop']} x {own['crop']} pixels cropped from the centre")
    mean, std = (", ".join(f"{v:.6g}" for v in own[name]) for name in ("mean", "std"))
    steps.append(f"scaled to [0, 1], less {mean}, over {std}, by channel")
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def _options(facts: Mapping[str, Any]) -> str:
    changed = facts["changed"]
    text = "Other than the defaults: " + (
        ", ".join(f"`{name}` = {said(json.dumps(value))}" for name, value in changed.items())
        or "none"
    )
    return f"{text}.\n\nAll of them:\n\n```json\n{json.dumps(facts['options'], indent=1)}\n```"
