"""--json: every command that reports has it, and standard output is one JSON value, errors included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from runs import Place

from lrft.cli.main import COMMANDS, app, run_command

# They train, answer or talk; what they print is progress, an answer, or JSON already.
TALK = {"train", "generate", "chat", "serve", "schema", "quickstart"}


def test_every_command_that_reports_takes_json() -> None:
    group: Any = typer.main.get_command(app)
    names = {name for commands in COMMANDS.values() for name in commands}
    taking = {name for name in names if any("--json" in option.opts for option in group.commands[name].params)}
    assert names - taking == TALK & names


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    Place.make(root)
    return root


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert run_command([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_tables_become_one_object(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"a {i}", "completion": f"b {i}"}) + "\n" for i in range(80)))
    recipe = str(tmp_path / "recipe.yaml")
    made = printed(capsys, "init", recipe, "--model", str(place / "base"), "--data", str(rows))
    assert made["wrote"] == [recipe]
    assert printed(capsys, "check", recipe, "--static")["lines"][0].startswith(f"{recipe}: recipe OK")
    checked = printed(capsys, "check", recipe)
    assert checked["model"][0] == str(place / "base")
    assert checked["lines"] == [f"{recipe}: OK"]
    shown = printed(capsys, "preview", recipe, "-n", "2")
    assert [row["trained"] > 0 for row in shown["rows"]] == [True, True]
    assert shown["data"]["used"] == 80
    assert "[[" in shown["rows"][0]["parts"][0]


def test_an_error_is_json_too_and_words_go_to_the_other_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("model: a\nadapter: {rnak: 3}\ndata: b\noutput_dir: c\n")
    assert run_command(["check", str(tmp_path / "recipe.yaml"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_code"] == 2
    assert "Did you mean rank?" in json.loads(out)["error"][0]
    assert "Did you mean rank?" in err
