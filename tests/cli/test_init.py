"""`lrft init`: what it writes is what `lrft check` accepts, whatever the data look like."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import Place, write_rows

from lrft import recipe as recipes
from lrft import registry
from lrft.cli.main import run_command

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def numbered(n: int, **columns: str) -> list[dict[str, Any]]:
    """Different rows."""
    return [{name: f"{text} {i}" for name, text in columns.items()} for i in range(n)]


ROWS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": [*TURNS[:1], {"role": "assistant", "content": str(i)}]} for i in range(12)],
    "one row": [{"prompt": "a", "completion": "b"}],
    "two rows": numbered(2, prompt="a", completion="b"),
    "many rows": numbered(600, prompt="a", completion="b"),
    "other names": numbered(12, question="a", answer="b"),
    "a chat with another name": [{"conversation": [*TURNS, {"role": "user", "content": str(i)}]} for i in range(12)],
    "two formats": numbered(12, prompt="a", completion="b", text="c"),
    "long documents": numbered(12, text="a b c " * 400),
    "documents with another name": numbered(12, content="a b c " * 400),
    "alpaca": numbered(12, instruction="a", input="b", output="c"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("a place")
    Place.make(root)
    return root


@pytest.mark.parametrize("more", [[], ["--full"]], ids=["short", "full"])
@pytest.mark.parametrize("name", ROWS)
def test_what_is_written_is_accepted(
    name: str, more: list[str], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "the rows.jsonl", ROWS[name])
    recipe = tmp_path / "recipe.yaml"
    assert run_command(["init", str(recipe), "--model", str(place / "base"), "--data", str(rows), *more]) == 0
    assert run_command(["check", str(recipe)]) == 0, capsys.readouterr().err
    assert f"{len(ROWS[name])} of {len(ROWS[name])} used" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("kind", "rows"), [("csv", "question,answer\na,b\nc,d\n"), ("txt", "some text " * 400)])
def test_other_kinds_of_files_are_looked_at(
    kind: str, rows: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"rows.{kind}").write_text(rows)
    recipe = str(tmp_path / "recipe.yaml")
    assert run_command(["init", recipe, "--model", str(place / "base"), "--data", str(tmp_path / f"rows.{kind}")]) == 0
    assert run_command(["check", recipe]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("method", [*registry.methods(), *registry.PRESETS])
def test_every_method_and_preset_can_be_named(method: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert run_command(["init", str(recipe), "--model", "a/b", "--data", "hub:a/b", "--method", method]) == 0
    assert recipes.load(recipe).model.name == "a/b"


@pytest.mark.parametrize("text", ["a: b", "#x", "123", "null", "it's", 'a "b"', "~/x", "- a", "a\\b", "ü"])
def test_names_are_written_so_that_yaml_reads_them(text: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert run_command(["init", str(recipe), "--model", text, "--data", text]) == 0
    loaded = recipes.load(recipe)
    assert (loaded.model.name, loaded.data.train[0].path) == (text, text)


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    assert run_command(["init", str(tmp_path / "recipe.yaml"), "--model", "a", "--data", "b"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "recipe.yaml").read_text() == "mine"


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(tmp_path / "recipe.yaml")
    for words, missing in (([], "--model and --data"), (["--model", "a"], "--data"), (["--data", "a"], "--model")):
        assert run_command(["init", recipe, *words]) == 2
        assert f"lrft init needs {missing}\n" in capsys.readouterr().err
    assert not Path(recipe).exists()


def test_a_terminal_is_asked(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, b"some/model\nrows.jsonl\n")
    done = subprocess.run(
        [sys.executable, "-m", "lrft", "init"],
        stdin=theirs,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    loaded = recipes.load(tmp_path / "recipe.yaml")
    assert (loaded.model.name, loaded.data.train[0].path) == ("some/model", "rows.jsonl")


@pytest.mark.parametrize(
    ("row", "objective"),
    [
        ({"text": "a", "label": "b"}, "classification"),
        ({"sentence1": "a", "sentence2": "b", "label": 1}, "classification"),
        ({"anchor": "a", "positive": "b", "negative": "c"}, "embedding"),
        ({"query": "a", "document": "b"}, "embedding"),
        ({"tokens": ["a"], "ner_tags": [0]}, "token-classification"),
        ({"prompt": "a", "completion": "b", "label": True}, "kto"),
        ({"question": "a", "answer": "b"}, "sft"),
        ({"text": "a", "source": "b"}, "sft"),
    ],
)
def test_the_objective_is_that_of_the_rows(row: dict[str, Any], objective: str, tmp_path: Path) -> None:
    data, path = tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    data.write_text(json.dumps(row) + "\n")
    assert run_command(["init", str(path), "--model", "a/b", "--data", str(data)]) == 0
    loaded = recipes.load(path)
    assert loaded.training.objective.name == objective
    assert ("objective:" in path.read_text()) == (objective != "sft")
    assert bool(loaded.data.train[0].columns) == ("question" in row)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "does not exist yet"),
        ([{"foo": "a", "bar": "b"}], "the columns foo, bar match no format"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "pairs of a chosen and a rejected answer"),
        ([], "the file holds no rows"),
        (["no object"], "no valid row"),
    ],
)
def test_data_that_check_will_refuse_is_told(
    rows: list[Any] | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    if rows is not None:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_command(["init", str(tmp_path / "recipe.yaml"), "--model", "a/b", "--data", str(data)]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_file_that_is_no_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.docx").write_text("a")
    words = ["init", str(tmp_path / "recipe.yaml"), "--model", "a/b", "--data", str(tmp_path / "rows.docx")]
    assert run_command(words) == 3
    assert not (tmp_path / "recipe.yaml").exists()


def test_next_commands_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = "my $(recipe) 'x'.yaml"
    assert run_command(["init", path, "--model", "a/b", "--data", "c.jsonl"]) == 0
    said = capsys.readouterr().out.split("next")[1].splitlines()
    assert [shlex.split(line) for line in said] == [["lrft", name, path] for name in ("check", "preview", "train")]
    first = Path(path).read_text().splitlines()[1]
    assert shlex.split(first.removeprefix("# "))[:3] == ["lrft", "check", path]


def test_an_editor_finds_the_schema_beside_the_recipe(tmp_path: Path) -> None:
    words = ["--model", "a/b", "--data", "c.jsonl"]
    for more in ([], ["--full"]):
        (tmp_path / "recipe.yaml").unlink(missing_ok=True)
        assert run_command(["init", str(tmp_path / "recipe.yaml"), *words, *more]) == 0
        first = (tmp_path / "recipe.yaml").read_text(encoding="utf-8").splitlines()[0]
        named = tmp_path / first.removeprefix("# yaml-language-server: $schema=")
        assert json.loads(named.read_text(encoding="utf-8")) == recipes.json_schema()
    named.write_text("a file of somebody else")
    assert run_command(["init", str(tmp_path / "other.yaml"), *words]) == 0
    assert named.read_text(encoding="utf-8") == "a file of somebody else"
