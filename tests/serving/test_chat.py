"""`lrft chat` with its input from a pipe: history, commands, mistakes, and an answer that is interrupted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import answering
import pytest
from answering import turns

from lrft.cli.main import run_command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering.make(tmp_path_factory.mktemp("chat"))


def talk(place: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, target: str = "one") -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
    return run_command(["chat", str(place / target), "--max-new-tokens", "8"])


def stock(place: Path, asked: list[dict[str, str]], adapted: bool = True) -> str:
    return answering.stock(place, "one" if adapted else None, asked)


def test_answers_follow_the_history_and_the_base_is_heard(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved = tmp_path / "talk.jsonl"
    lines = ("hello?", "1?", "/base", f"/save {saved}", "/reset", "1?", "/system be short", "1?", "/quit", "2?")
    assert talk(place, monkeypatch, *lines) == 0
    first = stock(place, turns("hello?"))
    second = stock(place, turns("hello?", first, "1?"))
    other = stock(place, turns("hello?", first, "1?"), adapted=False)
    alone = stock(place, turns("1?"))
    short = stock(place, [{"role": "system", "content": "be short"}, *turns("1?")])
    assert capsys.readouterr().out == (
        f"{first}\n{second}\n{other}\nsaved to {saved}\nthe conversation is forgotten\n{alone}\n"
        f"a new conversation\n{short}\n"
    )
    assert json.loads(saved.read_text()) == {"messages": turns("hello?", first, "1?", second)}


def test_a_mistake_is_said_and_the_conversation_continues(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "hello " * 600
    assert talk(place, monkeypatch, "/base", "/rest", "/save", "", long, "hello?") == 0
    said = capsys.readouterr()
    assert said.out == stock(place, turns("hello?")) + "\n"
    for message in ("nothing has been asked yet", "Did you mean /reset?", "/save requires a file", "256 positions"):
        assert message in said.err


def test_ctrl_c_ends_the_answer_and_not_the_conversation(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lrft.serving.text import Growing

    real, calls = Growing.add, []

    def interrupted(self: Growing, token: int) -> None:
        calls.append(token)
        real(self, token)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Growing, "add", interrupted)
    assert talk(place, monkeypatch, "hello?", "1?") == 0
    part, rest = capsys.readouterr().out.split("\n", 1)
    assert stock(place, turns("hello?")).startswith(part)
    assert rest == stock(place, turns("hello?", part, "1?")) + "\n"


def test_a_plain_model_is_its_own_base(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert talk(place, monkeypatch, "hello?", "/base", target="base") == 0
    said = capsys.readouterr()
    assert said.out == stock(place, turns("hello?"), adapted=False) + "\n"
    assert "it is its own base" in said.err
