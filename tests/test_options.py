"""Options: the table of the command line, the order of sources, what is refused and how."""

import typing

import pytest

from circuitcore.cli.options import BY_NAME, FLAGS, NOT_FIELDS
from circuitcore.errors import UsageError
from circuitcore.options import PRESETS, Options, as_toml, resolve


def choices_of(annotation) -> tuple[str, ...]:
    """The literal values of a field's annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(typing.get_args(annotation))
    return ()


def test_the_command_lines_table_is_the_options():
    assert set(BY_NAME) - set(NOT_FIELDS) == set(Options.model_fields)
    assert len(BY_NAME) == len(FLAGS)
    for name, field in Options.model_fields.items():
        flag = BY_NAME[name]
        assert flag.choices == choices_of(field.annotation), name
        assert flag.switch == (field.annotation is bool), name
        assert flag.help, name
        if field.default is not None and not flag.switch:
            assert flag.default == str(field.default), name
    assert BY_NAME["preset"].choices == tuple(PRESETS)


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


@pytest.mark.parametrize(
    "flags",
    [
        {"reference": "peak"},
        {"reference": "peak", "stop": "sparsest-above", "screen": "on"},
        {"gpu": "1", "device": "cpu"},
        {"std": "0"},
        {"mean": "1,2"},
        {"memory": "12"},
        {"crop": "0"},
        {"threshold": "0"},
    ],
)
def test_options_that_do_not_go_together(flags):
    with pytest.raises(UsageError):
        resolve(flags, environment={})


def test_the_key_holds_what_changes_the_numbers():
    engine = Options(device="cpu", memory=2**30, impl="torch", no_fallback=True, max_bad=3)
    assert engine.method() == Options().method()
    assert Options(levels="0,0.5").method() != Options().method()
    assert Options(fc_threshold=0.9).method() == Options().method()
