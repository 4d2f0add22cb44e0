"""`lrft eval --judge` against a local server that plays the judge: fair, biased to a place, failing."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import runs
from parsed import sound
from typer.testing import CliRunner

from lrft.cli.main import app
from lrft.errors import UsageError
from lrft.judging import endpoint as client
from lrft.judging.endpoint import AskingFailed, Endpoint
from lrft.judging.verdicts import Kept, decision, facts_of, judge, outcome

KEY = "sk-secret-of-the-test"


class Court(ThreadingHTTPServer):
    """`way`: how it judges. fair: the longer answer is better; place: always A; others fail in that way."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Judge)
        self.way = "fair"
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Judge(BaseHTTPRequestHandler):
    server: Court

    def log_message(self, *words: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers["Authorization"])
        text = body["messages"][0]["content"]
        way, number = self.server.way, len(self.server.asked)
        a, b = (re.search(rf"\[Answer {x}\]\n(.*)\n\[End of answer {x}\]", text, re.DOTALL)[1] for x in "AB")  # type: ignore[index]
        said = "A" if len(a) > len(b) else "B" if len(b) > len(a) else "C"
        reply = {"fair": f"Reason: [[C]] no.\n[[{said}]]", "place": "[[A]]", "unsure": "Both are fine."}.get(way)
        if way == "busy" and number % 2:
            self.answer(429, "{}", {"Retry-After": "7"})
        elif way == "locked":
            self.answer(401, f"wrong key {KEY}", {})
        elif way == "late":
            time.sleep(0.6)
        elif way == "moved":
            self.answer(302, "", {"Location": self.server.url + "/elsewhere"})
        else:
            content = {"choices": [{"message": {"content": reply or f"[[{said}]]"}}]}
            self.answer(200, "{}" if way == "odd" else json.dumps(content), {})

    def answer(self, status: int, text: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def court() -> Iterator[Court]:
    server = Court()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def answers() -> list[dict[str, Any]]:
    """Two that the first wins by length, one that the second wins, one of equal length, and one that is the same."""
    pairs = [("aaa", "b"), ("cccc", "dd"), ("e", "ff"), ("g", "h"), ("same", "same")]
    return [{"prompt": f"{n}{{}}?", "expected": "x" * n, "first": a, "second": b} for n, (a, b) in enumerate(pairs)]


def asking(court: Court, waits: list[float] | None = None, **more: Any) -> Endpoint:
    return Endpoint(court.url, "judge", KEY, wait=(waits if waits is not None else []).append, **more)


def test_a_fair_judge(court: Court) -> None:
    """Both orders agree; the win rate is the mean of 1, 1, 0, half and half."""
    found = judge(answers(), asking(court), Kept(None, ""))
    assert [outcome(one) for one in found] == ["first", "first", "second", "tie", "tie"]
    assert len(court.asked) == 8  # the answer that is the same needs no judge
    assert set(court.keys) == {f"Bearer {KEY}"}
    assert all((body["model"], body["temperature"]) == ("judge", 0) for body in court.asked)
    facts = facts_of(found, "judge", "run", "base")
    assert (facts["win_rate"], facts["agreement"], facts["rows_with_errors"]) == (0.6, 1.0, 0)
    assert 0 <= facts["low"] < 0.6 < facts["high"] <= 1
    assert facts["said"][1] == "2 won, 1 lost, 2 tied, 0 decided by the order"


def test_the_interval_of_a_win_rate() -> None:
    """Of 60 wins in 100 rows: 0.6 ± 1.96 sqrt(0.6 0.4 / 100)."""
    made = [{"verdicts": [who, who], "errors": []} for who in ["first"] * 60 + ["second"] * 40]
    facts = facts_of(made, "j", "a", "b")
    half = 1.96 * math.sqrt(0.24 / 100)
    assert (facts["low"], facts["high"]) == pytest.approx((0.6 - half, 0.6 + half), abs=0.02)


def test_a_judge_that_looks_at_the_place_wins_nothing_for_anyone(court: Court) -> None:
    court.way = "place"
    found = judge(answers(), asking(court), Kept(None, ""))
    facts = facts_of(found, "judge", "run", "base")
    assert (facts["win_rate"], facts["orders_disagree"], facts["agreement"]) == (0.5, 4, 0.2)
    assert facts["preferred_place"] == {"first": 4, "second": 0}


@pytest.mark.parametrize(
    ("way", "kind", "requests"),
    [
        ("unsure", "no decision in the reply", 8),
        ("locked", "HTTP 401", 8),  # nothing that a repetition would mend
        ("odd", "reply", 8),
        ("moved", "HTTP 302", 8),
    ],
)
def test_errors_of_the_judge_are_no_losses(court: Court, way: str, kind: str, requests: int) -> None:
    court.way = way
    facts = facts_of(judge(answers(), asking(court), Kept(None, "")), "judge", "run", "base")
    assert (facts["rows_with_errors"], facts["errors"], facts["second_wins"]) == (4, {kind: 8}, 0)
    assert (facts["win_rate"], facts["low"]) == (0.5, None)  # of the one row that needs no judge
    assert len(court.asked) == requests
    assert facts["said"][-1] == f"4 rows left out for errors of the judge: {kind} 8"


def test_a_judge_that_is_late_or_away(court: Court) -> None:
    court.way = "late"
    waits: list[float] = []
    with pytest.raises(AskingFailed, match="timeout"):
        asking(court, waits, timeout=0.1).ask("[Answer A]\n\n[End of answer A]\n[Answer B]\n\n[End of answer B]", 5)
    assert waits == [1.0, 2.0, 4.0]
    assert len(court.asked) == client.TRIES
    with pytest.raises(AskingFailed, match="connection"):
        Endpoint("http://127.0.0.1:9", "judge", wait=waits.append).ask("x", 5)


def test_too_many_requests_are_asked_again_when_the_server_says(court: Court, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrft.judging.verdicts.AT_ONCE", 1)
    court.way = "busy"
    waits: list[float] = []
    found = judge(answers(), asking(court, waits), Kept(None, ""))
    assert [outcome(one) for one in found] == ["first", "first", "second", "tie", "tie"]
    assert waits == [7.0] * 8


def test_a_key_is_in_no_message(court: Court) -> None:
    court.way = "locked"
    with pytest.raises(AskingFailed) as caught:
        asking(court).ask("[Answer A]\n\n[End of answer A]\n[Answer B]\n\n[End of answer B]", 5)
    assert "wrong key ***" in str(caught.value)
    assert KEY not in str(caught.value) + repr(asking(court))


def test_replies_are_kept_and_errors_are_asked_again(court: Court, tmp_path: Path) -> None:
    path = tmp_path / "new" / "replies.jsonl"
    first = judge(answers()[:2], asking(court), Kept(path, "j"))
    assert len(court.asked) == 4
    path.write_bytes(path.read_bytes() + b'{"asked": "torn')
    court.way = "locked"
    again = judge(answers(), asking(court), Kept(path, "j"))
    assert again[:2] == first
    assert [outcome(one) for one in again[2:]] == ["error", "error", "tie"]
    court.way, court.asked = "fair", []
    whole = judge(answers(), asking(court), Kept(path, "j"))
    assert [outcome(one) for one in whole] == ["first", "first", "second", "tie", "tie"]
    assert len(court.asked) == 4
    court.asked = []
    judge(answers(), asking(court), Kept(path, "another judge"))
    assert len(court.asked) == 8


@pytest.mark.parametrize(
    ("text", "swapped", "found"),
    [
        ("[[A]]", False, "first"),
        ("[[A]]", True, "second"),
        ("[[B]]", True, "first"),
        ("First [[A]], on reflection [[B]]", False, "second"),
        ("[[C]]", True, "tie"),
        ("A is better", False, None),
        ("", False, None),
    ],
)
def test_decisions(text: str, swapped: bool, found: str | None) -> None:
    assert decision(text, swapped=swapped) == found


def test_the_command(court: Court, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table, page, JSON; the key stands in no file."""
    place = runs.Place.make(tmp_path)
    run = place.train("training.learning_rate=0.05")
    monkeypatch.setenv("MY_KEY", KEY)
    arguments = ["eval", str(run), "--judge", court.url, "--judge-model", "judge", "--judge-key", "MY_KEY"]
    done = CliRunner().invoke(app, [*arguments, "--json", "--max-new-tokens", "6"])
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout)["data"]["validation"]
    assert found["judge"]["rows"] == len(found["answers"]) == 5
    wins = sum(len(one["first"]) > len(one["second"]) for one in found["answers"])
    assert found["judge"]["first_wins"] == wins
    page = sound((run / "eval/judge-base.html").read_text())
    assert any("win rate of" in text for text in page.texts("li"))
    assert sum(text.startswith("Judge: ") for text in page.texts("p")) == 5
    assert set(court.keys) == {f"Bearer {KEY}"}
    for path in run.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    asked = len(court.asked)
    again = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "6"])
    assert again.exit_code == 0
    assert len(court.asked) == asked
    assert "win rate of" in again.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--judge", "localhost:8000", "--judge-model", "m"], "expected an address"),
        (["--judge", "http://me:word@host/v1", "--judge-model", "m"], "key or password"),
        (["--judge", "http://host/v1?key=1", "--judge-model", "m"], "key or password"),
        (["--judge", "http://host/v1", "--judge-model", "m", "--no-generate"], "--no-generate"),
        (["--judge-model", "m"], "require each other"),
    ],
)
def test_judges_that_cannot_be_asked_are_refused(given: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["eval", "run", *given])
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)
