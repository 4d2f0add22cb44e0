"""The pages of the documentation: links lead somewhere; commands, options, scripts and files that they name exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
import yaml

import lrft
from lrft import errors
from lrft import recipe as recipes
from lrft.cli.main import COMMANDS, app, spell_resume

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


def blocks(text: str, *kinds: str) -> Iterator[str]:
    """The fenced blocks of a kind, as they stand."""
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.S | re.M):
        if kind in kinds:
            yield block


def refused_commands(text: str) -> list[str]:
    """Lines of shell blocks that call lrft in a way that its command line does not take. Nothing is run."""
    group: Any = typer.main.get_command(app)
    wrong = []
    for block in blocks(text, "bash", "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            # One with an ellipsis, or what the shell itself reads, stands for others.
            if not line.startswith("lrft ") or "..." in line:
                continue
            words = shlex.split(re.split(r"\s[|>&;]", line)[0], comments=True)
            if len(words) < 2 or words[1] not in NAMES:
                continue
            try:
                group.commands[words[1]].make_context(words[1], spell_resume(words[2:]))
            except Exception as error:
                wrong.append(f"{line}: {error}")
    return wrong


def refused_recipes(text: str, folder: Path) -> list[str]:
    """YAML blocks with keys of a recipe that are refused, what they leave out filled in."""
    wrong = []
    for block in blocks(text, "yaml"):
        keys = yaml.safe_load(block)
        if (
            not isinstance(keys, dict)
            or not set(keys) <= {*recipes.Recipe.model_fields, "extends"}
            or "extends" in keys
        ):
            continue
        needed = {"model": "org/model", "data": "rows.jsonl", "output_dir": "runs/docs"}
        more = [f"{key}: {value}\n" for key, value in needed.items() if key not in keys]
        recipe = folder / "recipe.yaml"
        recipe.write_text(block + "".join(more), encoding="utf-8")
        try:
            recipes.load(recipe)
        except errors.LrftError as error:
            wrong.append(f"{block}\n{error}")
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


@EVERY_PAGE
def test_commands_and_recipes_of_a_page_are_accepted(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert refused_commands(text) == []
    assert refused_recipes(text, tmp_path) == []


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


def test_a_command_or_a_recipe_that_is_refused_is_found(tmp_path: Path) -> None:
    lines = ("lrft merge", "lrft plan a.yaml --devices 0", "lrft plan a.yaml --devices 2  # fine", "lrft train ... x")
    shell = "```bash\n" + "\n".join(lines) + "\n```\n"
    assert [line.split(":")[0] for line in refused_commands(shell)] == ["lrft merge", "lrft plan a.yaml --devices 0"]
    yaml_blocks = "```yaml\nadapter: {rnak: 3}\n```\n```yaml\nadapter: {rank: 3}\n```\n```yaml\nfoo: 1\n```\n"
    assert [wrong.split("\n")[0] for wrong in refused_recipes(yaml_blocks, tmp_path)] == ["adapter: {rnak: 3}"]
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    assert sum(line.startswith("lrft ") for text in pages for b in blocks(text, "bash") for line in b.splitlines()) > 12
    assert sum("```yaml" in text for text in pages) > 5


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


def said_in_code() -> list[str]:
    """Of each module, its string literals one behind the other, … for what is filled in."""
    texts = []
    for module in sorted((ROOT / "lrft").rglob("*.py")):
        words = []
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                words.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.append(node.value)
        texts.append("\n".join(words))
    return texts


def unsaid(page: str, texts: list[str]) -> list[str]:
    """Messages in the first column of a page's tables that no module says, … standing for anything."""
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    parts = {message: [part.strip() for part in message.split("…") if part.strip(" .")] for message in messages}
    return [message for message in messages if not any(all(part in text for part in parts[message]) for text in texts)]


def test_every_message_of_the_troubleshooting_page_is_said_by_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    texts = said_in_code()
    assert len(re.findall(r"^\| `", page, re.M)) > 25
    assert unsaid(page, texts) == []
    assert unsaid("| `… is not a kee. Did you mean …` | a | b |\n", texts) == ["… is not a kee. Did you mean …"]


def test_the_index_has_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {Path(target).name for target in links(index.read_text(encoding="utf-8"))}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed
