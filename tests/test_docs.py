"""The pages of the documentation: links lead somewhere; commands, options, scripts and files that they name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer

import lrft
from lrft import errors
from lrft.cli.main import COMMANDS, app

ROOT = Path(lrft.__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
NAMES = {name for group in COMMANDS.values() for name in group}


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)


def links(text: str) -> list[str]:
    """The targets of links and pictures that are no address."""
    found = re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(text)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """What a link can say behind #: the headings, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(text: str) -> Iterator[str]:
    """Inline code, and each line of fenced blocks up to its comment."""
    yield from re.findall(r"`([^`\n]+)`", prose(text))
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.S | re.M):
        yield from (re.split(r"\s+#", line)[0].strip() for line in block.splitlines())


def wrong_links(page: Path, text: str) -> list[str]:
    wrong = []
    for target in links(text):
        path, _, anchor = unquote(target).partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


def wrong_commands(text: str) -> list[str]:
    """Calls of lrft with a command or an option that it does not have."""
    group: Any = typer.main.get_command(app)
    wrong = []
    for line in code(text):
        called = re.match(r"lrft ([a-z][\w-]*)(.*)", line)
        if called is None:
            continue
        name, rest = called.groups()
        known = {option for one in group.commands[name].params for option in one.opts} if name in NAMES else set()
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) - {"--help"}
        if name not in NAMES or options - known:
            wrong.append(line)
    return wrong


def wrong_files(text: str) -> list[str]:
    """Scripts, modules, tests and recipes that are not there. A name in capitals or with a star stands for others."""
    pattern = r"(?<![\w./-])((?:scripts|lrft|tests|recipes|docs)/[\w./*-]+)"
    named = {found.rstrip("./") for line in code(text) for found in re.findall(pattern, line)}
    return sorted(name for name in named if not re.search(r"\*|[A-Z]{3}", name) and not (ROOT / name).exists())


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    assert wrong_links(page, page.read_text(encoding="utf-8")) == []


@EVERY_PAGE
def test_commands_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert wrong_commands(text) == []
    if page.name != "CHANGELOG.md":  # it speaks of the past as well
        assert wrong_files(text) == []


def test_what_does_not_exist_is_found() -> None:
    page = ROOT / "README.md"
    assert wrong_links(page, "[a](docs/no.md) [b](#no) [c](README.md#no) ![d](no.svg) [e](https://x.y)") == [
        *("docs/no.md", "#no", "README.md#no", "no.svg")
    ]
    assert wrong_links(page, "[a](docs/trust.md#in-short) [b](#exit-codes) `[c](no)`\n```\n[d](no)\n```\n") == []
    assert wrong_commands(
        "`lrft trian x`, `lrft train x --fresh`, `lrft train --frehs`\n```bash\nlrft plna # a\n```\n"
    ) == [*("lrft trian x", "lrft train --frehs", "lrft plna")]
    assert wrong_files("`scripts/no`, `scripts/test --all`, `lrft/ROOM`, `tests/no.py`") == [
        "scripts/no",
        "tests/no.py",
    ]


def test_modules_on_the_page_of_the_architecture_exist() -> None:
    named = set(re.findall(r"`(\w+/\w+\.py)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / "lrft" / name).is_file()] == []


def test_the_readme_has_every_command() -> None:
    rows = re.findall(r"^\| (`lrft .+?) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    told = {word for row in rows for word in re.findall(r"`(?:lrft )?([a-z]+)", row)}
    assert told == NAMES


def test_the_readme_has_every_exit_code() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    told = {int(number) for row in rows for number in row.split(", ")}
    classes = [errors.LrftError, *errors.LrftError.__subclasses__()]
    assert told == {0, 130, 143} | {one.exit_code for one in classes}


def test_the_index_has_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {Path(target).name for target in links(index.read_text(encoding="utf-8"))}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed
