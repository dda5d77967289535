"""Small refusals: each says what is wrong in the words that were typed."""

import csv
import io

import pytest
from command import call
from made_up import sweep as made_up

from circuitcore.cli.tables import as_csv, cell, sweep_text

SMALL = ["--scoring-images", "1", "--extraction-images", "4", "--heldout-images", "2",
         "--levels", "0,0.5", "--device", "cpu"]  # fmt: skip


@pytest.mark.parametrize("verb", ["sweep", "score"])
def test_triton_without_a_gpu_needs_one(verb, monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    out = ["--out", tmp_path / "run"]
    said = call(verb, "Bag", "--impl", "triton", "--device", "cpu", *out, code=5).stderr
    assert "--impl triton needs a GPU, this runs on the cpu" in said and "NaN" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["threshold", "fc-threshold", "conv-threshold"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nan", "a number is needed"),
        ("1.01", "less than or equal to 1"),
        ("inf", "less than or equal to 1"),
        ("0", "greater than 0"),
        ("-0.5", "greater than 0"),
        ("most", "valid number"),
    ],
)
def test_a_threshold_is_a_fraction(name, value, said):
    stderr = call("sweep", f"--{name}={value}", code=2).stderr
    assert f"--{name}: " in stderr and said in stderr


def test_what_differs_from_a_run_is_named_as_it_was_given(small, tmp_path):
    def differing(*options):
        said = call(*small.arguments, *options, "--out", small.folder, code=3).stderr
        return [line.split(":")[0].strip() for line in said.splitlines() if line.startswith("  ")]

    assert differing("--threshold", "0.5") == ["threshold"]
    assert differing("--conv-threshold", "0.5") == ["conv_threshold"]
    assert differing("--threshold", "0.5", "--fc-threshold", "0.6") == [
        "conv_threshold", "fc_threshold",
    ]  # fmt: skip


def test_one_is_no_plural():
    two = sweep_text(made_up(("a", "b")), "table")
    assert "overlap of 1 pair:" in two
    assert "overlap of 3 pairs:" in sweep_text(made_up(("a", "b", "c")), "table")


def test_export_does_not_take_a_folder_for_a_file(small, tmp_path):
    said = call("export", small.folder, "Bag", "--out", tmp_path, code=3).stderr
    assert f"--out {tmp_path}: a folder; give the file to write, such as Bag.safetensors" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["-cat", "-", "--dog", "-1", "-n0144.x", "-caf\u00e9, black"])
def test_a_name_that_begins_with_a_hyphen_comes_back_as_it_was(name):
    (_, (found,)) = csv.reader(io.StringIO(as_csv([{"category": name}])))
    assert found == name


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "@SUM(A1)", "-1+cmd|' /C calc'!A0", "-A1*2", "-SUM(A1)", "-1+1", "-a!b"]
)
def test_what_a_spreadsheet_would_run_is_text(name):
    assert cell(name) == "'" + name
