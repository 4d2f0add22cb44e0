"""Help: complete at any width, in the order of use, with an example that is accepted, and completed by shells."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from lrft.cli.main import COMMANDS, app, run_command

NAMES = [name for commands in COMMANDS.values() for name in commands]
NARROW = 62


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(NARROW))


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run_command([*words]) == 0
    return capsys.readouterr().out


def test_commands_are_grouped_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "--help").splitlines()
    wanted = [line for title, commands in COMMANDS.items() for line in (f"{title}:", *commands)]
    heads = [line.split()[0] for line in lines[lines.index("Start:") :] if line.strip() and line[2:3] != " "]
    assert heads == wanted
    assert len(NAMES) == len(set(NAMES))


def test_nothing_is_cut_off_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    listed = " ".join(shown(capsys, "-h").split())
    for commands in COMMANDS.values():
        for name, command in commands.items():
            summary = " ".join(command.__doc__.split("\n\n")[0].split())
            assert f"{name} {summary}" in listed


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_fits_and_has_a_short_form(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [name] if name else []
    text = shown(capsys, *words, "-h")
    assert text == shown(capsys, *words, "--help")
    assert max(map(len, text.splitlines())) <= NARROW


@pytest.mark.parametrize("name", NAMES)
def test_the_example_is_a_command_that_is_accepted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, name, "-h").split("Example:")[1].split("\n\n")[0].split())
    words = shlex.split(text)
    assert words[:2] == ["lrft", name]
    command = typer.main.get_command(app).commands[name]
    command.make_context(name, words[2:])  # raises for an unknown option, a missing argument or a value out of range


def test_methods_fit(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "methods")
    assert max(map(len, text.splitlines())) <= NARROW


def test_a_shell_completes_commands() -> None:
    program = "import sys; sys.argv = ['lrft']; from lrft.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **{"_LRFT_COMPLETE": "complete_bash", "COMP_WORDS": "lrft pre", "COMP_CWORD": "1"},
        },
    )
    assert (done.stdout.strip(), done.stderr) == ("preview", "")
