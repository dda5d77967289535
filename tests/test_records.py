"""The shipped JSON schema is that of the records, and holds what a sweep must say."""

import json
from importlib.resources import files

import jsonschema
import pytest

from circuitcore.records import Accuracy, json_schema


def test_shipped_schema_is_current() -> None:
    shipped = json.loads((files("circuitcore") / "schemas" / "sweep.json").read_text())
    assert shipped == json_schema(), "write circuitcore/schemas/sweep.json anew from json_schema()"
    jsonschema.Draft202012Validator.check_schema(shipped)


def test_schema_refuses_a_document_without_its_baseline() -> None:
    accuracy = Accuracy(hit=1, false_alarm=0, false_alarms=0, csa=1, bias=0).model_dump()
    category = {
        "category": "a",
        "index": 0,
        "unpruned": {"extraction": accuracy},
        "stages": [],
        "circuit": None,
        "cost": {"seconds": 1.0, "fpe": 0.0, "multiply_adds": 0},
    }
    document = {
        "schema": "circuitcore.sweep/2",
        "run": {},
        "categories": [category],
        "overlap": {"pairs": 0, "mean": None, "min": None, "max": None, "mean_chance": None,
                    "file": "overlap.parquet"},
        "summary": dict.fromkeys(
            ["mean_pruned", "sd_pruned", "mean_heldout_csa", "mean_unpruned_heldout_csa",
             "mean_unpruned_heldout_csa_biased",
             "mean_heldout_hit", "mean_unpruned_heldout_hit", "mean_csa_ratio", "ratio_of_means",
             "ratio_of_means_unbiased", "mean_faithfulness"]
        ) | {"categories": 1, "undefined": {"a reason": 1}},
    }  # fmt: skip
    with pytest.raises(jsonschema.ValidationError, match="extraction_biased"):
        jsonschema.validate(document, json_schema())
