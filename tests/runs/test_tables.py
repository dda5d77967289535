"""The tables of a run folder: its images and its curves, as they were used."""

import hashlib
from pathlib import Path

import pyarrow.parquet as parquet

from circuitcore.bundled import IMAGES
from circuitcore.runs.folder import open_run
from circuitcore.runs.tables import curve_rows


def test_images_are_listed_with_their_hashes(small):
    rows = parquet.read_table(small.folder / "images.parquet").to_pylist()
    assert len(rows) == 40 + 200 + 300 and [row["id"] for row in rows] == list(range(len(rows)))
    for row in rows[::97]:
        content = (Path(IMAGES) / row["path"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert row["path"].split("/")[0] == ("train" if row["split"] == "scoring" else "val")


def test_curves_have_a_row_a_level_and_one_chosen_a_stage(small):
    rows = parquet.read_table(small.folder / "curves.parquet").to_pylist()
    assert rows == curve_rows(open_run(small.folder).records())
    for category in small.document["categories"]:
        for stage in category["stages"]:
            mine = [r for r in rows if r["category"] == category["category"]
                    and r["stage"] == stage["stage"]]  # fmt: skip
            assert [r["csa"] for r in mine] == [level["csa"] for level in stage["levels"]]
            assert [r["chosen"] for r in mine].index(True) == stage["chosen"]
