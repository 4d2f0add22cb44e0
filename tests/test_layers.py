"""Which room may import which, as data; and what must not be loaded, or named, where."""

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

# A room imports only rooms of the floors above its own line. A new file needs no line here: its folder decides.
FLOORS = (
    "errors version",
    "registry foreign",
    "utils optim recipe metrics",
    "data model moving",
    "adapters objectives runs",
    "methods distributed evaluation loading tracking report",
    "planning export serving installation quickstart",
    "training inspection compare judging publishing",
    "verification tuning",
    "__init__",
    "cli",
    "__main__",
)
FLOOR = {room: number for number, line in enumerate(FLOORS) for room in line.split()}

# Rooms that stay narrower than their floor allows.
ONLY = {
    "registry": "errors",
    "foreign": "",
    "recipe": "errors registry foreign",
    "moving": "errors registry foreign utils recipe",
    "optim": "errors registry",
    "metrics": "",
    "data": "errors registry utils",
    "model": "errors utils",
    "adapters": "errors registry model utils",
    "quickstart": "errors model utils",
    "objectives": "errors data model",
    "evaluation": "data model objectives",
    "methods": "adapters model utils",
    "report": "errors runs utils version",
    "export": "errors data adapters loading model utils",
    "publishing": "errors recipe utils version model adapters runs loading export",
    "serving": "errors data model adapters runs evaluation loading utils",
    "judging": "errors registry utils data model adapters objectives evaluation loading report",
    "tuning": "errors registry recipe utils data model loading report runs distributed tracking compare",
    "compare": "errors registry recipe utils data model adapters objectives evaluation runs distributed loading "
    "report tracking planning",
}


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST, package: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    """(room, line) of every import of lrft, at any depth, relative ones too, but those for type checkers.

    package: the folders that the file lies in, as ("lrft", "data").
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[1], node.lineno) for alias in node.names if alias.name[:5] == "lrft.")
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            parts = [*start, *(node.module or "").split(".")]
            if parts[0] == "lrft":
                rooms = [parts[1]] if len(parts) > 1 and parts[1] else [alias.name for alias in node.names]
                yield from ((room, node.lineno) for room in rooms)
        else:
            yield from imported(node, package)


def all_imports() -> Iterator[tuple[str, str, str]]:
    """(importing room, imported room, place)."""
    for file in MODULES:
        package = ("lrft", *file.relative_to(ROOT).parts[:-1])
        for room, line in imported(ast.parse(file.read_text(encoding="utf-8")), package):
            if room != room_of(file):
                yield room_of(file), room, f"{file.relative_to(ROOT.parent)}:{line}"


def test_every_room_has_its_floor() -> None:
    assert {room_of(file) for file in MODULES} == set(FLOOR)


def test_imports_go_down_only() -> None:
    wrong = [f"{place}: {by} imports {room}" for by, room, place in all_imports() if FLOOR[room] >= FLOOR[by]]
    assert wrong == []


def test_the_narrow_ones_stay_narrow() -> None:
    wrong = [
        f"{place}: {by} imports {room}"
        for by, room, place in all_imports()
        if by in ONLY and room not in ONLY[by].split()
    ]
    assert wrong == []


def test_no_room_has_a_circle_inside() -> None:
    """Modules of one room import each other in one direction, counting imports at the top of the file."""
    arrows: dict[str, set[str]] = {}
    names = {".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in MODULES}
    for file in MODULES:
        name = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lrft"):
                found = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
                arrows.setdefault(name, set()).update((found & names) - {name})
    while ends := {name for name in names if name not in arrows or not arrows[name] & arrows.keys()} & arrows.keys():
        for name in ends:
            del arrows[name]
    assert arrows == {}


def test_the_scan_sees_imports_inside_functions_and_relative_ones_and_not_those_for_types() -> None:
    source = (
        "if TYPE_CHECKING:\n    import lrft.training\n"
        "def f():\n    from lrft import model, __version__\n"
        "    import lrft.adapters.part\n    from lrft.data.dataset import Rows\n    from ..runs import folder\n"
        "    from .. import errors\n    from . import hub\n"
    )
    rooms = [room for room, _ in imported(ast.parse(source), ("lrft", "export"))]
    assert rooms == ["model", "__version__", "adapters", "data", "runs", "errors", "export"]


def test_methods_are_imported_by_the_registry_alone_and_by_name() -> None:
    assert [place for _, room, place in all_imports() if room == "methods"] == []
    users = [str(f.relative_to(ROOT)) for f in MODULES if "import_module" in f.read_text(encoding="utf-8")]
    assert users == ["registry/declarations.py"]


def test_the_package_itself_loads_nothing() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in top] == [
        "from __future__ import annotations",
        "from typing import TYPE_CHECKING, Any",
        "from lrft.version import __version__",
    ]


HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "matplotlib", "numpy")


LIGHT = (
    *("lrft", "lrft.errors", "lrft.registry", "lrft.recipe", "lrft.cli.main", "lrft.cli.method_list"),
    *("lrft.model.hub", "lrft.planning.communication"),
)


def test_what_answers_at_once_loads_no_library() -> None:
    program = "\n".join(
        f"import {module}; print(*['{module}:' + name for name in {HEAVY} if name in sys.modules])" for module in LIGHT
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        timeout=600,
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


@pytest.mark.parametrize(
    "source", ['x == "mora"', 'if y in ("lora", 3): ...', "match x:\n case 'dora': ...", '"pissa" in methods']
)
def test_the_scan_for_names_finds_them(source: str) -> None:
    assert list(comparisons_with(set(registry.methods()), ast.parse(source)))
