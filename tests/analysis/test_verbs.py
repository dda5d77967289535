"""The verbs that follow a sweep, and the same sweep again, on its run folder."""

import csv
import io
import json
import shutil

import pytest
from command import call, masks


def test_rerun_computes_nothing(small) -> None:
    document, folder = small.document, small.folder
    before = {p: p.stat().st_mtime_ns for p in folder.glob("units/*/*")}
    again = call(*small.arguments, "--out", folder, "--format", "json")
    assert json.loads(again.stdout) == document
    assert {p: p.stat().st_mtime_ns for p in folder.glob("units/*/*")} == before
    assert "2 of 2" in again.stderr


def test_a_flipped_bit_is_found_and_mended(small, tmp_path) -> None:
    folder = shutil.copytree(small.folder, tmp_path / "run")
    before = masks(folder)
    victim = sorted(folder.glob("units/*/*.safetensors"))[0]
    content = bytearray(victim.read_bytes())
    content[-100] ^= 1
    victim.write_bytes(content)
    assert "sha256" in call("verify", folder, code=3).stdout
    call(*small.arguments, "--out", folder)
    call("verify", folder)
    after = masks(folder)
    assert before.keys() == after.keys()
    assert all((before[k] == after[k]).all() for k in before)


def test_evaluate_says_what_the_sweep_said(small) -> None:
    rows = json.loads(call("evaluate", small.folder, "--format", "json").stdout)
    said = {c["category"]: c["circuit"]["heldout"] for c in small.document["categories"]}
    assert {r["category"]: r["circuit"]["csa"] for r in rows} == {
        name: heldout["csa"] for name, heldout in said.items()
    }


def test_controls_do_worse_than_the_circuit(small) -> None:
    rows = json.loads(call("controls", small.folder, "--format", "json").stdout)
    by = {(r["category"], r["control"]): r for r in rows}
    for name in ("Trouser", "Bag"):
        circuit, drawn = by[name, "circuit"], by[name, "random"]
        assert drawn["kept_weights"] == circuit["kept_weights"]
        assert drawn["extraction"]["csa"] < circuit["extraction"]["csa"]
        assert by[name, "complement"]["overlap"] == 0


def test_controls_beside_their_circuits_in_80_columns(small):
    said = call("controls", small.folder).stdout
    assert max(map(len, said.splitlines())) <= 80
    means = json.loads(call("controls", small.folder, "--format", "json").stdout)
    circuits, drawn = (
        [r["heldout"]["csa"] for r in means if r["control"] == kind]
        for kind in ("circuit", "random")
    )
    mean = sum(a - b for a, b in zip(circuits, drawn, strict=True)) / 2
    row = next(line for line in said.splitlines() if line.startswith(" random"))
    assert float(row.split()[4]) == pytest.approx(mean, abs=6e-4)


def test_extract_chooses_anew_from_the_stored_curve(small, tmp_path) -> None:
    lower = ["--threshold", "0.3", "--format", "json", "--out"]
    fresh = json.loads(call("sweep", "Trouser", *small.levels, *lower, tmp_path / "fresh").stdout)
    again = json.loads(call("extract", small.folder, *lower, tmp_path / "again").stdout)
    chosen = {c["category"]: c for c in again["categories"]}["Trouser"]
    expected = fresh["categories"][0]
    assert chosen["circuit"]["kept_weights"] == expected["circuit"]["kept_weights"]
    assert chosen["cost"]["multiply_adds"] < expected["cost"]["multiply_adds"]
    assert chosen["circuit"]["pruned"] >= small.document["categories"][0]["circuit"]["pruned"]


def test_worker_shards_add_up_to_the_sweep(small, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small.folder, folder, ignore=shutil.ignore_patterns("units", "*.parquet"))
    call("worker", folder, "--shard", "1/10", "--quiet")  # the second of ten categories: Trouser
    expected, found = masks(small.folder), masks(folder)
    assert found and all((expected[k] == found[k]).all() for k in found)


def test_the_same_sweep_as_csv(small) -> None:
    said = call(*small.arguments, "--out", small.folder, "--format", "csv").stdout
    assert [row["category"] for row in csv.DictReader(io.StringIO(said))] == ["Trouser", "Bag"]


def test_a_plan_bounds_what_the_sweep_executed(small) -> None:
    planned = json.loads(call("plan", *small.levels, "--no-probe", "--format", "json").stdout)
    for category in small.document["categories"]:
        assert 0 < category["cost"]["fpe"] <= planned["fpe_upper"]


def test_scores_of_every_layer(tmp_path) -> None:
    said = call("score", "Trouser", "--out", tmp_path / "scores", "--format", "json").stdout
    rows = json.loads(said)
    assert len(rows) == 8 and all(row["max"] > 0 for row in rows)
    assert list((tmp_path / "scores").glob("*.safetensors"))


def test_stability_of_twice_as_many_images() -> None:
    rows = json.loads(call("stability", "Trouser", "--format", "json").stdout)
    assert {(r["stage"], r["twice"]) for r in rows} == {
        (s, k) for s in ("fc", "conv") for k in (2, 4)
    }
    assert all(-1 <= r["spearman"] <= 1 for r in rows)


def test_controls_go_on_where_they_were_killed_and_are_never_made_twice(
    own_small, monkeypatch
) -> None:
    import circuitcore
    from circuitcore.analysis import controls as module

    (own_small.folder / module.CONTROLS).unlink(missing_ok=True)
    run, judged, own = circuitcore.open_run(own_small.folder), [], module._row

    def row(prepared, record, control, mask, kept):
        judged.append((record.category, control))
        if judged[-1] == ("Bag", "random") and judged.count(judged[-1]) == 1:
            raise KeyboardInterrupt
        return own(prepared, record, control, mask, kept)

    monkeypatch.setattr(module, "_row", row)
    with pytest.raises(KeyboardInterrupt):
        run.controls()
    assert {r["category"] for r in module.control_rows(run.folder / module.CONTROLS)} == {"Trouser"}
    del judged[:]
    judged += [("Bag", "random")]
    rows = run.controls()
    assert {name for name, _ in judged} == {"Bag"}
    del judged[:]
    assert list(run.controls()) == list(rows) and not judged
    monkeypatch.undo()
    (run.folder / module.CONTROLS).unlink()
    assert list(run.controls()) == list(rows)
