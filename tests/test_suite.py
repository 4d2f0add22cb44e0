"""The test suite itself: what its modules may do."""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = sorted(HERE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_test_module_is_imported_by_another(path: Path) -> None:
    """What two of them need is a helper module in tests/."""
    assert [name for name in imported(path) if name.split(".")[0].startswith("test_")] == []


def test_every_module_has_a_name_of_its_own() -> None:
    """They are imported by their bare names; a second one of the same name would be the first."""
    names = Counter(path.stem for path in MODULES if path.stem != "conftest")
    assert [name for name, n in names.items() if n > 1] == []


@pytest.fixture(scope="module")
def shared() -> None:
    """Nothing: its scope is what counts."""


def test_one_worker_runs_what_shares_a_fixture(request: pytest.FixtureRequest, shared: None) -> None:
    """xdist knows a group by the end of a test's name, and says nothing where it cannot write it there."""
    assert request.node.nodeid.endswith("@test_suite") == ("PYTEST_XDIST_WORKER" in os.environ)
