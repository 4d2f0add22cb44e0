"""`lrft serve`: OpenAI's API over plain HTTP, the base and adapters by name, limits, and clients that leave."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import answering
import pytest
from answering import turns
from serving_here import CHAT, TEXT, call, serving

from lrft.errors import UsageError
from lrft.serving import batches
from lrft.serving.answerer import Answerer
from lrft.serving.http_server import Limits, Server
from lrft.serving.shelf import load_shelf, named_by_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering.make(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def shelf(root: Path) -> Any:
    return load_shelf(named_by_folder([str(root / "one"), str(root / "two")]))


@pytest.fixture(scope="module")
def server(shelf: Any) -> Iterator[Server]:
    with serving(shelf, limits=Limits(max_new_tokens=64, body=5000)) as made:
        yield made


def ask(model: str, *texts: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": turns(*texts), "max_tokens": 8, "temperature": 0, **more}


def said(reply: tuple[int, Any]) -> str:
    assert reply[0] == 200, reply
    return reply[1]["choices"][0]["message"]["content"]


def test_base_and_adapters_answer_under_their_names_one_after_the_other_and_at_once(root: Path, server: Server) -> None:
    assert [model["id"] for model in call(server, "/v1/models")[1]["data"]] == ["base", "one", "two"]
    asked = [(name, f"{n}?") for n in range(4) for name in ("base", "one", "two")]
    expected = [answering.stock(root, None if name == "base" else name, turns(text)) for name, text in asked]
    assert len(set(expected)) > 6
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda each: said(call(server, CHAT, ask(*each))), asked))
    assert found == expected


def test_a_stream_is_the_whole_answer_in_pieces_and_says_why_it_ended(server: Server) -> None:
    status, whole = call(server, CHAT, ask("one", "hello?", seed=3, temperature=1.0))
    assert (status, whole["object"], whole["choices"][0]["finish_reason"]) == (200, "chat.completion", "length")
    assert whole["usage"]["completion_tokens"] == 8
    more = {"stream": True, "seed": 3, "temperature": 1.0, "stream_options": {"include_usage": True}}
    _, events = call(server, CHAT, ask("one", "hello?", **more))
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["usage"] == whole["usage"]
    word = whole["choices"][0]["message"]["content"][2:5]
    _, cut = call(server, CHAT, ask("one", "hello?", seed=3, temperature=1.0, stop=[word]))
    text = whole["choices"][0]["message"]["content"]
    assert cut["choices"][0]["message"]["content"] == text[: text.index(word)]
    assert cut["choices"][0]["finish_reason"] == "stop"


def test_completions_continue_texts_as_they_are(server: Server) -> None:
    body = {"model": "two", "prompt": ["hello", "the answer is"], "max_tokens": 5, "temperature": 0}
    status, both = call(server, TEXT, body)
    assert status == 200
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    alone = call(server, TEXT, body | {"prompt": "the answer is"})[1]["choices"][0]["text"]
    assert both["choices"][1]["text"] == alone


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "message"),
    [
        (CHAT, ask("three", "x"), 404, "model_not_found", "there are base, one, two"),
        ("/v1/nothing", {}, 404, "unknown_url", "POST /v1/nothing"),
        (CHAT, b"{", 400, "invalid_json", "not JSON"),
        (CHAT, [], 400, None, "must be a JSON object"),
        (CHAT, {"model": "one"}, 400, "invalid_value", "messages: field required"),
        (CHAT, ask("one", "x", n=2), 400, "unsupported_parameter", "n is not supported"),
        (CHAT, ask("one", "x", temperature=3), 400, "invalid_value", "temperature"),
        (CHAT, ask("one", "x", max_tokens=65), 400, "invalid_value", "at most 64 tokens"),
        (CHAT, ask("one", "hello " * 400), 400, "context_length_exceeded", "the model has 256 positions"),
        (CHAT, ask("one", "x" * 6000), 413, "too_large", "5,000 bytes"),
        (CHAT, {"model": "one", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None, ""),
        (TEXT, {"model": "one", "prompt": ""}, 400, "invalid_value", "prompt"),
    ],
)
def test_what_cannot_be_answered_is_answered_with_openai_s_errors(
    server: Server, path: str, body: Any, status: int, code: str | None, message: str
) -> None:
    found, reply = call(server, path, body)
    error = reply["error"]
    assert (found, set(error)) == (status, {"message", "type", "param", "code"})
    assert error["code"] == code or code is None
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_strangers_are_refused(shelf: Any) -> None:
    with serving(shelf, key="secret") as server:
        assert call(server, "/v1/models")[0] == 401
        assert call(server, "/v1/models", Authorization="Bearer secre")[0] == 401
        assert call(server, "/v1/models", Authorization="Bearer secret")[0] == 200
        right = {"Authorization": "Bearer secret"}
        assert call(server, "/v1/models", Host="example.com:80", **right)[0] == 403
        assert call(server, CHAT, ask("one", "x"), Content_Type="text/plain", **right)[0] == 415


def test_a_full_queue_is_429_a_client_that_leaves_ends_its_answer_and_waiting_ones_hear_of_the_end(
    shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun, gate, answers = Answerer.answer, threading.Semaphore(0), threading.Semaphore(0), []

    def slow(self: Answerer, requests: Any) -> Any:
        begun.release()
        assert gate.acquire(timeout=60)
        answers.append(real(self, requests))
        return answers[-1]

    monkeypatch.setattr(Answerer, "answer", slow)
    with serving(shelf, limits=Limits(waiting=1, batch_size=1)) as server, ThreadPoolExecutor(3) as pool:
        gone = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
        gone.request(
            "POST", CHAT, json.dumps(ask("one", "hello?", max_tokens=200)), {"Content-Type": "application/json"}
        )
        assert begun.acquire(timeout=60)
        waits = pool.submit(call, server, CHAT, ask("two", "hello?"))
        while not server.batches._waiting:
            time.sleep(0.01)
        status, reply = call(server, CHAT, ask("two", "hello?"))
        assert (status, reply["error"]["type"]) == (429, "rate_limit_error")
        gone.close()
        time.sleep(2 * 0.25)  # until the server has looked
        gate.release()
        assert begun.acquire(timeout=60)
        assert [answer.finish for answer in answers[0]] == ["cancelled"]
        assert answers[0][0].tokens < 5
        last = pool.submit(call, server, CHAT, ask("one", "1?"))
        while not server.batches._waiting:
            time.sleep(0.01)
        closing = pool.submit(server.batches.close)
        status, reply = last.result()
        assert (status, reply["error"]["code"]) == (503, "shutting_down")
        gate.release()
        closing.result()
        assert waits.result()[0] == 200  # what had begun was finished
        with pytest.raises(batches.Closed):
            server.batches.submit("one", [])


def test_a_mistake_in_one_batch_is_told_and_the_next_is_served(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Answerer.answer
    with serving(shelf) as server:
        monkeypatch.setattr(Answerer, "answer", lambda self, requests: 1 / 0)
        status, reply = call(server, CHAT, ask("one", "x"))
        assert (status, reply["error"]["code"]) == (500, "generation_failed")
        monkeypatch.setattr(Answerer, "answer", real)
        assert call(server, CHAT, ask("one", "x"))[0] == 200


def test_only_adapters_of_one_base_are_served_together(root: Path, tmp_path: Path) -> None:
    other = answering.make(tmp_path, seed=5)
    (other / "one").rename(other / "three")
    with pytest.raises(UsageError, match="fingerprint differs"):
        load_shelf(named_by_folder([str(root / "one"), str(other / "three")]))
    with pytest.raises(UsageError, match="names must differ"):
        load_shelf(named_by_folder([str(root / "one"), str(root / "one")]))
    with pytest.raises(UsageError, match="is neither a run nor an adapter"):
        load_shelf(named_by_folder([str(root / "one"), str(root)]))
