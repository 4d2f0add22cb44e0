"""Retired wordings stay out of what users read: messages, help, declarations, README and pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lrft

ROOT = Path(lrft.__file__).parents[1]
# wording that is no longer used -> what is said in its place
RETIRED = {
    "a promise does not hold": "a correctness check failed",
    "adapters already": "already has adapters",
    "aloud": "with a warning",
    "becomes:": "exports to:",
    "begun anew": "reset",
    "by whose hand": "exception classes and exit codes",
    "cannot work beside": "conflicts with",
    "contestant": "system",
    "contestants": "systems",
    "decide on ranks": "set the ranks",
    "does not come out even": "is not a divisor",
    "go on with": "continue with",
    "gradient is looked at": "calibration rows for the gradient",
    "holds a run already": "already contains a run",
    "honoured": "stopped by a signal",
    "is no weight": "not mergeable",
    "is none of": "must be one of",
    "keep packed rows apart": "packed sequences leak into each other",
    "keeps products itself": "caches linear outputs",
    "know no": "do not support",
    "knows no": "does not support",
    "most nearly": "closest to",
    "no nearer to": "as different as",
    "no weight can": "not mergeable",
    "not here:": "not applicable:",
    "nothing wrong was found": "OK",
    "numbers to train": "trainable parameters",
    "on the untouched base": "on the original base",
    "own promises": "correctness checks",
    "packed equals alone": "packing verified",
    "resting": "may_not_move, for trainable tensors that are exempt from the movement check",
    "rows of the data to look at": "calibration rows",
    "sayable": "exportable",
    "sound (": "OK (",
    "stand still": "do not change",
    "stands twice": "appears twice",
    "stays an adapter": "not mergeable: use as an adapter",
    "straight through": "uninterrupted, of a run that is compared with a resumed one",
    "take them away": "remove them",
    "trained numbers": "trainable parameters",
    "vouched": "included in the checksum manifest",
    "was made by another recipe": "was trained with another recipe",
    "what can be said": "commands and their arguments",
    "words for others": "presets",
    "words of other trainers": "key names from other trainers",
}


def spoken(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of the string literals of a module, without those that document code."""
    tree = ast.parse(source)
    commands = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.decorator_list]
    shown = {id(n.body[0]) for n in commands if any(ast.unparse(d).startswith("app.") for d in n.decorator_list)}
    alone = [n for n in ast.walk(tree) if isinstance(n, ast.Expr) and id(n) not in shown]
    silent = {id(n.value) for n in alone}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value


def found(wording: str, text: str) -> bool:
    """Whether it stands there as words of its own, whatever their case and the line breaks between them."""
    words = r"\s+".join(map(re.escape, wording.split()))
    end = r"(?!\w)" if wording[-1].isalnum() else ""
    return re.search(rf"(?<!\w){words}{end}", text, re.IGNORECASE) is not None


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """What users read, by its place."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    read = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in pages}
    for module in sorted((ROOT / "lrft").rglob("*.py")):
        for line, text in spoken(module.read_text(encoding="utf-8")):
            read[f"{module.relative_to(ROOT)}:{line}: {text[:60]}"] = text
    return read


@pytest.mark.parametrize("wording", RETIRED)
def test_no_retired_wording_is_read_by_users(wording: str, texts: dict[str, str]) -> None:
    assert [place for place, text in texts.items() if found(wording, text)] == [], f"say: {RETIRED[wording]}"


def test_a_retired_wording_would_be_found() -> None:
    source = 'def f():\n    """Silent old word."""\n    raise ValueError(f"an Old\\nword, {1}")\n'
    assert [line for line, text in spoken(source) if found("old word", text)] == [3]
    command = '@app.command()\ndef f():\n    """Of an old word."""\n'
    assert [text for _, text in spoken(command)] == ["Of an old word."]
    assert not found("old word", "bold wording")
