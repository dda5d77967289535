"""The table of what can be swept: made by the command, kept, and true of what is tried here."""

import json
from pathlib import Path

import pytest
from command import call

from circuitcore.inputs.libraries import census
from circuitcore.inputs.models import BOUND

SOME = ("tv:mnasnet0_5", "tv:squeezenet1_1", "tv:regnet_x_400mf", "tv:swin_t", "timm:resnet10t")


@pytest.fixture(scope="module")
def kept():
    return {row.model: row for row in census.table()}


def test_every_network_is_in_the_table(kept):
    import torchvision.models as tv

    names = census.networks()
    assert list(kept) == names and len(set(names)) == len(names)
    assert {n for n in names if n.startswith("tv:")} == {
        f"tv:{n}" for n in tv.list_models(module=tv)
    }
    assert sum(n.startswith("timm:") for n in names) >= 60


def test_what_works_is_within_the_bounds(kept):
    for row in kept.values():
        assert row.works or row.why, row
        if row.difference is not None:
            assert row.works and row.difference < BOUND / 3 and row.masked < 1e-3, row
            assert 0 < row.fpe < 1, row


@pytest.mark.parametrize("name", SOME)
def test_the_table_says_what_is_found_here(name, kept):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    found = census.checked(name)
    assert (found.works, found.why) == (kept[name].works, kept[name].why)
    if found.difference is not None:
        assert found.difference < BOUND / 3 and found.masked < 1e-3
        assert found.fpe == pytest.approx(kept[name].fpe, rel=0.1)  # kept to two digits


def test_ls_lists_what_works_and_says_what_does_not(kept):
    said = call("ls", "models", "--format", "json")
    listed = {row["model"] for row in json.loads(said.stdout)}
    assert listed == {"bundled"} | {name for name, row in kept.items() if row.works}
    refused = [name for name, row in kept.items() if not row.works]
    assert said.stderr.startswith(f"{len(refused)} networks") and "docs/models.md" in said.stderr


def test_a_check_of_some_prints_and_keeps_nothing(kept):
    before = census.TABLE.read_bytes()
    said = call(
        "ls", "models", "--check", "--only", "tv:mnasnet0_[57]*", "--format", "json", "--quiet"
    )
    rows = json.loads(said.stdout)
    assert [row["model"] for row in rows] == ["tv:mnasnet0_5", "tv:mnasnet0_75"]
    assert census.TABLE.read_bytes() == before
    assert "no such network" in call("ls", "models", "--check", "--only", "x", code=2).stderr
    assert "--check" in call("ls", "models", "--write", code=2).stderr


def test_the_page_is_of_the_table(kept):
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    for name, row in kept.items():
        shown = f"{row.difference:.1e}" if row.difference is not None else row.why.replace("|", "/")
        assert f"| `{name}` | {shown} |" in page, name


def test_partly_written_tables_keep_the_rest(tmp_path):
    one, two = census.networks()[:2]
    path = tmp_path / "a" / "b" / "c" / "census.json"
    path.parent.mkdir(parents=True)
    both = [census.Found(one, True, "", 1.234e-6, 0.0, 0.5), census.Found(two, False, "x")]
    census.write_tables(both, True, path)
    census.write_tables([census.Found(two, True, "", 1e-7, 0.0, 0.25)], False, path)
    first, second = census.table(path)
    assert (first.model, first.difference) == (one, 1.2e-6) and second.works and second.fpe == 0.25
