"""Many clients at once on a server with OpenAI's API: what it answers a second, how long clients wait, what is lost.

    lrft serve runs/quickstart                              # or: transformers serve --force-model FOLDER
    python scripts/load_test.py http://127.0.0.1:8000/v1 quickstart

Prints a row of docs/use.md. Ends by itself: each client asks `--each` times, one answer after the other. `--leaving`
further clients close their connection in the middle of an answer; at the end one asks more than the context holds, and
another whether the server is still there.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SECONDS = 600.0  # that an answer may take
LONG = 40_000  # words that no small model's context holds


@dataclass(frozen=True)
class Answer:
    status: int
    seconds: float
    tokens: int
    problem: str = ""


class Server:
    def __init__(self, address: str, model: str, tokens: int) -> None:
        parts = urlsplit(address)
        self.host, self.port, self.path = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
        self.model, self.tokens = model, tokens

    def connect(self, text: str, **more: Any) -> http.client.HTTPConnection:
        """A connection with a question on its way."""
        asked = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        body = json.dumps({**asked, "max_tokens": self.tokens, **more}).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=SECONDS)
        connection.request("POST", f"{self.path}/chat/completions", body, {"Content-Type": "application/json"})
        return connection

    def ask(self, text: str) -> Answer:
        began = time.monotonic()
        try:
            connection = self.connect(text)
            reply = connection.getresponse()
            found = json.loads(reply.read())
            connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Answer(0, time.monotonic() - began, 0, f"{type(error).__name__}: {error}")
        took = time.monotonic() - began
        if reply.status != 200:
            return Answer(reply.status, took, 0, json.dumps(found)[:200])
        return Answer(200, took, found["usage"]["completion_tokens"])

    def leave(self, text: str) -> None:
        """Ask for a stream and close the connection with the first bytes of it."""
        connection = self.connect(text, stream=True)
        connection.getresponse().read(20)
        connection.close()


def measure(server: Server, clients: int, each: int, leaving: int) -> tuple[list[Answer], float]:
    """(every answer, the seconds from the first question to the last answer)"""
    started = threading.Barrier(clients + 1)

    def client(number: int) -> list[Answer]:
        started.wait()
        return [server.ask(f"{number} plus {k} is what?") for k in range(each)]

    with ThreadPoolExecutor(clients + leaving) as pool:
        asked = [pool.submit(client, number) for number in range(clients)]
        started.wait()
        began = time.monotonic()
        gone = [pool.submit(server.leave, f"{n}, tell a story") for n in range(leaving)]
        answers = [answer for one in asked for answer in one.result()]
        took = time.monotonic() - began
        for one in gone:
            one.result()
    return answers, took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--each", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--leaving", type=int, default=5)
    given = parser.parse_args()
    server = Server(given.address, given.model, given.tokens)
    server.ask("warm up")
    answers, took = measure(server, given.clients, given.each, given.leaving)
    good = [answer for answer in answers if answer.status == 200]
    for answer in answers:
        if answer.status != 200:
            print(f"lost: {answer.status} {answer.problem}")
    waits = sorted(answer.seconds for answer in good) or [0.0]
    shown = [
        f"{len(good) / took:.2f}",
        f"{sum(answer.tokens for answer in good) / took:.1f}",
        f"{statistics.median(waits):.2f} s",
        f"{waits[min(len(waits) - 1, int(0.99 * len(waits)))]:.2f} s",
        f"{len(answers) - len(good)} of {len(answers)}",
    ]
    print("| requests/s | tokens/s | p50 | p99 | lost |")
    print(f"| {' | '.join(shown)} |", flush=True)  # what comes now a server may take very long over
    long, last = server.ask("word " * LONG), server.ask("still there?")
    print(f"longer than the context: {long.status} {long.problem[:120]}   afterwards: {last.status}")
    return 0 if len(good) == len(answers) and last.status == 200 else 1


if __name__ == "__main__":
    raise SystemExit(main())
