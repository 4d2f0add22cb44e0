"""constraints.txt pins what lrft itself asks for, and nothing that users install beside it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {"yaml": "pyyaml"}  # imported name -> distribution


def spelt(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    return {spelt(re.match(r"[\w.-]+", one)[0]) for one in wanted}


def imported() -> set[str]:
    names = set()
    for file in (ROOT / "lrft").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    return {MODULES.get(name, spelt(name)) for name in names - sys.stdlib_module_names - {"lrft"}}


def test_what_the_oldest_torch_lacks_is_asked_for_before_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyproject claims torch 2.6: Muon came with 2.9, attention over rows of many lengths with 2.10."""
    import torch

    from lrft.errors import MissingError
    from lrft.model import varlen_attention
    from lrft.optim.muon import Muon

    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(MissingError, match=r"torch .* has no Muon"):
        Muon().make([])
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert varlen_attention.kernel() is None
    newer = {"torch.optim.Muon": {"muon.py"}, "torch.nn.attention.varlen": {"varlen_attention.py"}}
    files = [(file.name, file.read_text(encoding="utf-8")) for file in (ROOT / "lrft").rglob("*.py")]
    assert {name: {file for file, text in files if name in text} for name in newer} == newer


def test_every_pin_is_lrfts_own_and_every_requirement_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {spelt(line.partition("==")[0]) for line in lines if not line.startswith("#")}
    assert pinned <= declared() | imported()
    assert declared() <= pinned
