"""Options: what is stated of each, the order of sources, what is refused and how."""

import dataclasses
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from circuitcore.cli.config import as_toml, resolve
from circuitcore.cli.main import run
from circuitcore.cli.options import BY_NAME, ENGINE_ONLY, NOT_FIELDS, RECHOOSE
from circuitcore.errors import OptionsError, UsageError
from circuitcore.options import (
    LATER,
    NAMES,
    NOT_WITH_TARGET,
    OF_CRITERION,
    ONLY_WITH_TARGET,
    PRESETS,
    Options,
    changing,
    options_of,
)
from circuitcore.options.values import Targets, read_targets
from circuitcore.runs.folder import NOT_KEPT

TYPED = {  # another value than the default: as text, and in its type
    "model": ("tv:alexnet", "tv:alexnet"),
    "arch": ("alexnet", "alexnet"),
    "images": (" photos ", "photos"),
    "categories": ("names.txt", Path("names.txt")),
    "target": ("features.8:0-3", ("features.8:0-3",)),
    "pool_target": ("mean", "mean"),
    "scoring_images": ("2", 2),
    "extraction_images": ("7", 7),
    "heldout_images": ("8", 8),
    "resize": ("none", "none"),
    "crop": ("224", 224),
    "mean": ("0.1,0.2,0.3", (0.1, 0.2, 0.3)),
    "std": ("0.5", (0.5,)),
    "labels": ("as-given", "as-given"),
    "duplicates": ("drop", "drop"),
    "incomplete": ("drop", "drop"),
    "decoder": ("torchcodec", "torchcodec"),
    "magnitude": ("set", "set"),
    "granularity": ("filter", "filter"),
    "criterion": ("snip", "snip"),
    "steps": ("16", 16),
    "ensemble": ("lrp, actgrad", "actgrad,lrp"),
    "normalise": ("l1", "l1"),
    "spatial": ("mean", "mean"),
    "ties": ("snap", "snap"),
    "ablate": ("mean", "mean"),
    "levels": ("0,0.5,0.9", "0,0.5,0.9"),
    "fc_levels": ("16", "16"),
    "conv_levels": ("linear:5", "linear:5"),
    "stages": ("late=f.*,g;early=e.?", "late=f.*,g;early=e.?"),
    "skip": ("a.0, b*", ("a.0", "b*")),
    "stop": ("sparsest-above", "sparsest-above"),
    "threshold": ("0.8", 0.8),
    "fc_threshold": ("0.7", 0.7),
    "conv_threshold": ("1", 1.0),
    "reference": ("unpruned", "unpruned"),
    "false_alarm_norm": ("target", "target"),
    "bias": ("sgd", "sgd"),
    "judge": ("error", "error"),
    "random_masks": ("2", 2),
    "seed": ("3", 3),
    "screen": ("off", "off"),
    "device": ("cuda:1", "cuda:1"),
    "gpu": ("0", 0),
    "dtype": ("bfloat16", "bfloat16"),
    "precision": ("tf32", "tf32"),
    "impl": ("torch", "torch"),
    "memory": ("1.5 GiB", 3 * 2**29),
    "no_fallback": ("yes", True),
    "workers": ("2", 2),
    "max_bad": ("5", 5),
    "allow_pickle": ("true", True),
    "out": ("a/b", Path("a/b")),
    "format": ("csv", "csv"),
    "quiet": ("1", True),
}
COUNTS = {"extraction_images": 20, "heldout_images": 30}  # else --target has counts of its own
WITH = (
    {"target": COUNTS}
    | {name: {"target": ("features.8:3",), **COUNTS} for name in ONLY_WITH_TARGET[1:]}
    | {name: {"criterion": criterion} for name, criterion in OF_CRITERION.items()}
)


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_typed_as_text_equals_the_typed_value(name, capsys):
    text, typed = TYPED[name]
    beside = WITH.get(name, {})
    options = Options(**{name: typed}, **beside)
    assert getattr(options, name) == typed and options != Options(**beside)
    assert resolve({name: text, **beside}, environment={}) == options
    assert resolve(beside, environment={f"CIRCUITCORE_{name.upper()}": text}) == options
    assert dataclasses.replace(options) == options_of(options.as_json()) == options
    spelled = BY_NAME[name].spelled
    typed_beside = [w for k, v in beside.items() for w in (BY_NAME[k].spelled,
                    *([str(v)] if isinstance(v, int | str) else v))]  # fmt: skip
    words = [spelled] if typed is True else [spelled, text]
    assert run(["sweep", *words, *typed_beside, "--print-config"]) == 0
    assert tomllib.loads(capsys.readouterr().out) == tomllib.loads(as_toml(options))


@pytest.mark.parametrize("name", NAMES)
def test_an_option_changes_the_key_or_it_does_not(name):
    """Those that change the numbers do; the few the key holds in another way are named here."""
    beside = {"model", "arch", "images", "categories", "resize", "crop", "mean", "std", "screen",
              "dtype", "precision", "decoder"}  # fmt: skip
    with_it = WITH.get(name, {})
    changed = Options(**{name: TYPED[name][1]}, **with_it).method() != Options(**with_it).method()
    assert changed == (name in changing("numbers") and name not in beside)


def test_every_option_changes_something_that_is_said():
    said = [changing("numbers"), changing("engine"), changing("call")]
    assert sorted(sum(said, ())) == sorted(NAMES)
    assert {"out", "format", "quiet", "device", "gpu", "memory", "workers"} == NOT_KEPT
    of_categories, of_target = Options(), Options(target=("features.8:3",))
    every = set(NAMES) - NOT_KEPT - LATER
    assert set(of_categories.as_json(NOT_KEPT)) == every - set(ONLY_WITH_TARGET)
    assert set(of_target.as_json(NOT_KEPT)) == every - set(NOT_WITH_TARGET)
    assert not set(ENGINE_ONLY) & set(changing("numbers"))
    assert set(RECHOOSE) <= set(NAMES)


def test_every_option_is_in_help(capsys):
    assert run(["sweep", "--help"]) == 0
    rows = [row.strip() for row in capsys.readouterr().out.splitlines()]
    found = [next(r for r in rows if f"{flag.spelled} " in f"{r} ") for flag in BY_NAME.values()]
    assert [rows.index(row) for row in found] == sorted(rows.index(row) for row in found)
    assert set(BY_NAME) == {*NAMES, *NOT_FIELDS}
    assert all(flag.help for flag in BY_NAME.values())


def test_options_load_nothing_heavy():
    code = "import sys, circuitcore.options; print({'pydantic', 'numpy', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_text_and_typed_values_mean_the_same():
    typed = Options(threshold=0.8, scoring_images=2, mean=(0.5,), memory=2**30, resize="none")
    text = {"threshold": "0.8", "scoring_images": "2", "mean": "0.5", "memory": "1G",
            "resize": "none"}  # fmt: skip
    assert resolve(text, environment={}) == typed


def test_flag_beats_environment_beats_file_beats_preset_beats_default(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('threshold = 0.7\nfalse_alarm_norm = "predicted"\nconv_threshold = 0.3\n')
    found = resolve(
        {"threshold": "0.5"},
        environment={"CIRCUITCORE_THRESHOLD": "0.6", "CIRCUITCORE_CONV_THRESHOLD": "0.4"},
        config=file,
        preset="paper-literal",
    )
    assert (found.threshold, found.conv_threshold) == (0.5, 0.4)
    assert found.false_alarm_norm == "predicted"  # the file over the preset
    assert found.reference == "unpruned"  # the preset over the default
    assert found.magnitude == "position"


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_printed_options_give_themselves_back(preset, tmp_path):
    options = resolve({"mean": "0.1,0.2,0.3", "out": 'a "b"'}, environment={}, preset=preset)
    file = tmp_path / "c.toml"
    file.write_text(as_toml(options))
    assert resolve({}, environment={}, config=file) == options


def test_all_faults_of_a_config_file_at_once(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('treshold = 0.9\nmagnitude = "posit"\nextraction_images = "many"\nseed = -1\n')
    with pytest.raises(UsageError) as caught:
        resolve({"levels": "0,2"}, environment={"CIRCUITCORE_BIASS": "none"}, config=file)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    for part in ("'treshold'", "'threshold'", "magnitude", "extraction_images", "seed", "--levels",
                 "CIRCUITCORE_BIASS", "'bias'", str(file)):  # fmt: skip
        assert part in message


@pytest.mark.parametrize("value", ["a\nb", "a\x01\x1b[2J\x7fb", "tab\t\rb", 'a "b" \\c', "'Ä'"])
def test_any_text_comes_back_through_a_config_file(value, tmp_path, capsys):
    assert run(["sweep", "--out", value, "--images", value, "--print-config"]) == 0
    file = tmp_path / "c.toml"
    file.write_bytes(capsys.readouterr().out.encode())
    assert run(["sweep", "--config", str(file), "--print-config"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["images"] == value
    assert resolve({}, environment={}, config=file).out == Path(value)


def test_all_that_does_not_fit_at_once():
    with pytest.raises(OptionsError) as caught:
        options_of({"biass": 1, "seed": -1, "mean": ["x", 0, "y"], "fc_levels": "0,2"})
    names = [name for name, _, _ in caught.value.problems]
    assert names == ["biass", "mean", "mean", "fc_levels", "seed"]
    lines = str(caught.value).splitlines()
    assert lines[0] == "--biass: no such option; did you mean 'bias' or 'images'? (got 1)"
    assert lines[3].startswith("--fc-levels: ") and lines[3].endswith("(got '0,2')")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_all_that_does_not_go_together_at_once():
    with pytest.raises(OptionsError) as caught:
        Options(reference="peak", screen="on", gpu=1, device="cpu")
    assert [name for name, _, _ in caught.value.problems] == ["", "", ""]
    assert "--gpu 1 and --device cpu disagree: give one" in str(caught.value).splitlines()


def test_options_of_a_criterion_are_in_the_key_with_it_alone():
    assert Options(criterion="ig").method() == {
        **Options().method(), "criterion": "ig", "steps": 8,
    }  # fmt: skip
    assert not {"steps", "ensemble"} & {*Options(criterion="snip").method()}
    assert not {"steps", "ensemble"} & {*Options().as_json()}
    said = Options(criterion="ensemble", ensemble=["lrp", "snip"]).method()
    assert said["ensemble"] == "snip,lrp" and "steps" not in said
    assert Options(criterion="ensemble").method()["steps"] == 8
    with pytest.raises(OptionsError, match="--steps belongs to --criterion ig"):
        Options(criterion="snip", steps=4)


def test_options_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().seed = 3
    with pytest.raises(OptionsError, match="--seed"):
        dataclasses.replace(Options(), seed=-1)


@pytest.mark.parametrize("text", ["300", "1", "0,1.5", "-0.1,0.5", "linear:256", "half", "0"])
def test_levels_that_are_refused(text):
    with pytest.raises(UsageError, match="--levels"):
        resolve({"levels": text}, environment={})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.9,0,0.5", (0, 0.5, 0.9)), ("0.5,0.5", (0, 0.5)), ("0.25", (0, 0.25))],
)
def test_levels_that_are_put_in_order(text, expected):
    assert resolve({"levels": text}, environment={}).grid("fc") == expected


def test_default_levels_are_geometric_in_the_kept_fraction():
    grid = Options().grid("conv")
    kept = [1 - g for g in grid]
    assert len(grid) == 32 and kept[0] == 1 and kept[-1] == pytest.approx(0.001)
    assert kept[1] / kept[0] == pytest.approx(kept[20] / kept[19])


def test_targets_as_they_are_written():
    assert read_targets(["features.8:0-3,7", "features.8:9"]) == Targets(
        "features.8", (0, 1, 2, 3, 7, 9)
    )
    assert read_targets(["a:x:y.npy"]) == Targets("a", (), ("x:y.npy",))
    assert read_targets([]) is None
    own = resolve({"target": "a:0"}, environment={})
    assert (own.extraction_images, own.heldout_images, own.judge) == (200, 300, "correlation")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"target": "a"}, "LAYER:UNIT"),
        ({"target": "a:x"}, "a unit's number"),
        ({"target": "a:3-1"}, "the smaller first"),
        ({"target": ["a:1", "b:1"]}, "one layer a run"),
        ({"target": ["a:1", "a:d.npy"]}, "not both"),
        ({"target": "a:1", "bias": "matched"}, "--bias: not with --target: "),
        ({"target": "a:1", "false_alarm_norm": "other"}, "there are no false alarms"),
        ({"target": "a:1", "reference": "peak"}, "the unpruned network agrees with itself"),
        ({"target": "a:1", "categories": "f"}, "there are no categories"),
        ({"target": "a:1", "screen": "on"}, "--screen on: every image"),
        ({"target": "a:1", "dtype": "float16"}, "compared in float32"),
        ({"target": "a:1", "precision": "tf32"}, "compared in float32"),
        ({"judge": "correlation"}, "--judge: only with --target"),
        ({"pool_target": "max"}, "--pool-target: only with --target"),
    ],
)
def test_what_does_not_go_with_a_target(flags, said):
    with pytest.raises(UsageError) as caught:
        resolve(flags, environment={})
    assert said in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    "flags",
    [
        {"reference": "peak"},
        {"reference": "peak", "stop": "sparsest-above", "screen": "on"},
        {"gpu": "1", "device": "cpu"},
        {"std": "0"},
        {"mean": "1,2"},
        {"memory": "12"},
        {"memory": "infG"},
        {"crop": "0"},
        {"threshold": "0"},
        {"steps": "4"},
        {"steps": "0", "criterion": "ig"},
        {"ensemble": "ig,lrp"},
        {"ensemble": "ig", "criterion": "ensemble"},
        {"ensemble": "ig,ig", "criterion": "ensemble"},
        {"ensemble": "ig,best", "criterion": "ensemble"},
        {"ensemble": "snip,lrp", "criterion": "ensemble", "steps": "4"},
    ],
)
def test_options_that_do_not_go_together(flags):
    with pytest.raises(UsageError):
        resolve(flags, environment={})


def test_what_is_skipped_is_said_again_and_again(tmp_path, capsys):
    assert run(["sweep", "--skip", "a", "--skip", "b.*,c", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert tomllib.loads(printed)["skip"] == ["a", "b.*", "c"]
    (tmp_path / "c.toml").write_text(printed)
    assert resolve({}, environment={}, config=tmp_path / "c.toml").skip == ("a", "b.*", "c")


def test_stages_have_levels_and_thresholds_in_the_key():
    found = Options(stages={"late": ["f.*", "g"], "fc": "h"}, levels="0,0.5", fc_levels="0,0.9")
    assert found.stages == "late=f.*,g;fc=h" and found.stage_names() == ("late", "fc")
    said = found.method()
    assert said["late_levels"] == [0.0, 0.5] and said["fc_levels"] == [0.0, 0.9]
    assert "conv_levels" not in said and said["stages"] == found.stages
    assert not LATER & set(Options().method())


def test_the_key_holds_what_changes_the_numbers():
    engine = Options(device="cpu", memory=2**30, impl="torch", no_fallback=True, max_bad=3)
    assert engine.method() == Options().method()
    assert Options(levels="0,0.5").method() != Options().method()
    assert Options(fc_threshold=0.9).method() == Options().method()
