"""Each promise of docs/security.md has a test of the name that it gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PAGE = HERE / "docs/security.md"


def test_every_promise_names_tests_that_are_there() -> None:
    """A row without a test, or with one that was renamed, is found."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if row != "| promise | test |"]
    assert len(promises) > 10
    for row in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            tree = ast.walk(ast.parse((HERE / file).read_text()))
            found = {node.name for node in tree if isinstance(node, ast.FunctionDef)}
            assert name in found, f"{file}::{name}"
