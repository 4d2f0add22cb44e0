"""Who may import whom, as data; and what must not be loaded, or named, where."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lrft
from lrft import registry

ROOT = Path(lrft.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# A file or folder of lrft imports only from the lines above its own. A new one gets a place here.
TIERS = (
    "errors",
    "files text loss schedule signals watchdog scale",
    "failures launch catalog metrics machine optim tensorfile runfolder page",
    "figures runfacts",
    "charts",
    "recipe methodlist combinations",
    "core",
    "data base documents starter report",
    "methods summary diagnostics runreport reportpage spectra",
    "checkpoint krylov intruders",
    "evaluate pieces peftfolder",
    "merging verify checks layout footprint sharding",
    "strategies",
    "zero",
    "inspecting",
    "inspectreport",
    "trainer",
    "plan",
    "fitting",
    "saving",
    "setup",
    "train dryrun",
    "selfcheck",
    "starting commands evaluation compare",
    "__init__",
    "cli",
    "__main__",
)
TIER = {unit: number for number, line in enumerate(TIERS) for unit in line.split()}

# Those that must stay narrower than their line allows.
ONLY = {
    "errors": "",
    "catalog": "errors",
    "recipe": "errors catalog",
    "core": "errors catalog",
    "methods": "core",
    "loss": "",
    "base": "errors files core",
    "data": "errors files text",
    "checkpoint": "errors files core",
    "evaluate": "loss data",
    "pieces": "errors tensorfile core checkpoint",
    "merging": "errors files tensorfile core base checkpoint pieces machine",
    "verify": "errors files tensorfile recipe base checkpoint loss evaluate machine",
}


def unit_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(unit, line) of every import of lrft, at any depth, but those for type checkers and relative ones."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("lrft."):
                    yield alias.name.split(".")[1], node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "lrft":
            parts = (node.module or "").split(".")
            for alias in node.names:
                yield (parts[1] if len(parts) > 1 else alias.name), node.lineno
        else:
            yield from imported(node)


def all_imports() -> Iterator[tuple[str, str, str]]:
    """(importing unit, imported unit, place). The version number is free to all."""
    for file in MODULES:
        for unit, line in imported(ast.parse(file.read_text(encoding="utf-8"))):
            if unit not in ("__version__", unit_of(file)):
                yield unit_of(file), unit, f"{file.relative_to(ROOT.parent)}:{line}"


def test_every_file_has_its_place() -> None:
    assert {unit_of(file) for file in MODULES} == set(TIER)


def test_imports_go_down_only() -> None:
    wrong = [f"{place}: {by} imports {unit}" for by, unit, place in all_imports() if TIER[unit] >= TIER[by]]
    assert wrong == []


def test_the_narrow_ones_stay_narrow() -> None:
    wrong = [
        f"{place}: {by} imports {unit}"
        for by, unit, place in all_imports()
        if by in ONLY and unit not in ONLY[by].split()
    ]
    assert wrong == []


def test_the_scan_sees_imports_inside_functions_and_not_those_for_types() -> None:
    source = (
        "if TYPE_CHECKING:\n    import lrft.train\n"
        "def f():\n    from lrft import base, __version__\n"
        "    import lrft.core.linear\n    from lrft.data.rows import Rows\n"
    )
    assert [unit for unit, _ in imported(ast.parse(source))] == ["base", "__version__", "core", "data"]


def test_methods_are_imported_by_core_compose_alone_and_by_name() -> None:
    assert [place for _, unit, place in all_imports() if unit == "methods"] == []
    users = [str(f.relative_to(ROOT)) for f in MODULES if "import_module" in f.read_text(encoding="utf-8")]
    assert users == ["core/compose.py"]


def test_the_package_itself_loads_nothing() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in top] == [
        "from __future__ import annotations",
        "from typing import TYPE_CHECKING, Any",
    ]


HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "matplotlib", "numpy")


LIGHT = ("lrft", "lrft.errors", "lrft.catalog", "lrft.recipe", "lrft.cli", "lrft.methodlist", "lrft.base", "lrft.scale")


@pytest.mark.parametrize("module", LIGHT)
def test_what_answers_at_once_loads_no_library(module: str) -> None:
    program = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def comparisons_with(names: set[str], tree: ast.AST) -> Iterator[int]:
    """Lines with one of `names` as a literal in a comparison or in a case of a match."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        else:
            continue
        literals = {leaf.value for side in sides for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)}
        if literals & names:
            yield node.lineno


def test_no_method_is_known_by_name_outside_its_file() -> None:
    names = set(registry.methods())
    found = [
        f"{file.relative_to(ROOT.parent)}:{line}"
        for file in MODULES
        if file.parent.name != "methods"
        for line in comparisons_with(names, ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_the_scan_for_names_finds_them() -> None:
    for source in ('x == "mora"', 'if y in ("lora", 3): ...', "match x:\n case 'dora': ...", '"pissa" in methods'):
        assert list(comparisons_with(set(registry.methods()), ast.parse(source))), source
