"""docs/trust.md promises tests: each must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs" / "trust.md").read_text(encoding="utf-8")


def parsed(file: str) -> ast.Module:
    (path,) = HERE.rglob(file)
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) >= 45
    for file, name in named:
        functions = {node.name for node in ast.walk(parsed(file)) if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{file}::{name}"


def test_every_test_names_its_entries() -> None:
    for row in (line for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)):
        number = row.split("|")[1].strip()
        for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", row):
            tree = ast.walk(parsed(file))
            (test,) = (node for node in tree if isinstance(node, ast.FunctionDef) and node.name == name)
            tag = re.match(r"Trust ([\d, ]+)[.:]", ast.get_docstring(test) or "")
            assert tag is not None, f"{file}::{name}"
            assert number in tag[1].split(", "), f"{file}::{name} does not name entry {number}"


def test_every_entry_has_a_test_or_cannot_occur() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(line.split("|")[1]) for line in rows] == list(range(1, 55))
    for line in rows:
        assert "::" in line or "cannot occur" in line, line
