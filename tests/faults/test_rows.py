"""The table of faults names a test that is there for every row."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ROWS = dict(
    re.findall(r"^\| (\d+) \|.*?\| (`.*?`) \|", (Path(__file__).parent / "README.md").read_text(),
               re.M)
)  # fmt: skip


def test_every_row_is_there():
    assert [int(number) for number in ROWS] == list(range(1, 45))


@pytest.mark.parametrize("number", ROWS)
def test_its_tests_are_there(number):
    for named in re.findall(r"`([^`]+)`", ROWS[number]):
        file, _, name = named.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert name in found if name else any(each.startswith("test_") for each in found), named
