"""The HTTP server: a thread for each connection, and one that answers.

The standard library's server is enough for this: the model is the bottleneck, by far, and nothing else need be
installed. For many clients on GPUs a server such as vLLM batches better; it takes the folder of `lrft merge` or of
`lrft export --to peft`.
"""

from __future__ import annotations

import hmac
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from lrft.data.prompts import Asking
from lrft.data.records import BadRow
from lrft.data.token_mask import encode_prompt
from lrft.errors import DataError, UsageError
from lrft.serving.answerer import Answer, Request
from lrft.serving.batches import Batches, Closed, Full, Ticket
from lrft.serving.load import Trained
from lrft.serving.openai_api import ApiError, Asked, ChatAsked, Reply, TextAsked, finish, read
from lrft.serving.page import page, policy
from lrft.serving.tool_calls import Form, Reading, form_of

IDLE_SECONDS = 30.0  # that a connection may say nothing while it is to say something
LOOK_SECONDS = 0.25  # between two looks whether a client that waits is still there
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Limits:
    """max_new_tokens: of an answer, and for requests that name none. waiting: requests. body: bytes."""

    max_new_tokens: int = 1024
    batch_size: int = 8
    waiting: int = 64
    connections: int = 128
    body: int = 1_000_000


class Server(ThreadingHTTPServer):
    """Serves until `shutdown`; `close` ends it, and what is being answered is finished first."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        shelf: Mapping[str, Trained],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        key: str | None = None,
        limits: Limits = Limits(),
    ) -> None:
        """port: 0 takes a free one. Raises UsageError when the address cannot be used."""
        self.shelf, self.key, self.limits, self.local = shelf, key, limits, host in LOOPBACK
        self.plain = {
            name: Asking(trained.tokenizer, plain=True, options=trained.options) for name, trained in shelf.items()
        }
        self.forms = {name: form_of(trained.asking) for name, trained in shelf.items()}
        self.free = threading.BoundedSemaphore(limits.connections)
        self.created = int(time.time())
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(f"{host}:{port} cannot be used: {error}", "Choose another port with --port.") from error
        answerers = {name: trained.answerer for name, trained in shelf.items()}
        self.batches = Batches(answerers, size=limits.batch_size, most=limits.waiting)

    def close(self) -> None:
        self.server_close()
        self.batches.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error; what else goes wrong in a handler was answered there."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: Server

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests hold what people wrote: nothing of them is printed."""

    def do_GET(self) -> None:
        self.answer({"/": self.page, "/health": self.health, "/v1/models": self.models})

    def do_POST(self) -> None:
        self.answer({"/v1/chat/completions": self.chat, "/v1/completions": self.complete})

    def answer(self, routes: Mapping[str, Callable[[], None]]) -> None:
        """Do what the path says; every failure becomes a body of OpenAI's form."""
        try:
            with self.room():
                path = urlsplit(self.path).path
                self.refuse_strangers(open_to_all=path == "/")
                if path.startswith("/v1/models/") and self.command == "GET":
                    self.send(200, self.model(unquote(path.removeprefix("/v1/models/"))))
                elif path in routes:
                    routes[path]()
                else:
                    raise ApiError(404, f"there is no {self.command} {path}", "unknown_url")
        except ApiError as error:
            self.close_connection = True  # what is left of the body was not read
            self.send(error.status, error.body())
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    @contextmanager
    def room(self) -> Iterator[None]:
        if not self.server.free.acquire(blocking=False):
            raise ApiError(503, "too many connections; try again later", "overloaded")
        try:
            yield
        finally:
            self.server.free.release()

    def refuse_strangers(self, *, open_to_all: bool) -> None:
        """Raises ApiError without the key, and for a page of another site that a browser was led to. open_to_all: no
        key is asked for, as a browser could give none."""
        named = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if self.server.local and named not in LOOPBACK:
            raise ApiError(403, f"this server answers on loopback addresses alone, not as {named}", "forbidden_host")
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").encode("utf-8", "replace")
        if self.server.key is not None and not open_to_all and not hmac.compare_digest(given, self.server.key.encode()):
            raise ApiError(401, "wrong or no API key", "invalid_api_key")

    def page(self) -> None:
        """A page to try the models in a browser. It holds nothing of them, and asks for the key itself."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page())))
        self.send_header("Content-Security-Policy", policy())
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(page())

    def health(self) -> None:
        self.send(200, {"status": "ok"})

    def models(self) -> None:
        self.send(200, {"object": "list", "data": [self.model(name) for name in self.server.shelf]})

    def model(self, name: str) -> dict[str, Any]:
        self.known(name)
        return {"id": name, "object": "model", "created": self.server.created, "owned_by": "lrft"}

    def known(self, name: str) -> Trained:
        if name not in self.server.shelf:
            listed = ", ".join(self.server.shelf)
            raise ApiError(404, f"there is no model {name}; there are {listed}", "model_not_found", "model")
        return self.server.shelf[name]

    def chat(self) -> None:
        asked: ChatAsked = read(self.body(), ChatAsked)
        trained = self.known(asked.model)
        if not trained.asking.chat:
            raise ApiError(400, f"{asked.model} has no chat template; use /v1/completions", "no_chat_template", "model")
        try:
            turns = [turn.read(f"messages.{number}") for number, turn in enumerate(asked.messages)]
            tools = asked.offered
        except BadRow as error:
            raise ApiError(400, f"{error.field}: {error.detail}", "invalid_value", error.field) from error
        if tools and not trained.asking.reading.writes_tools:
            raise ApiError(400, f"the chat template of {asked.model} takes no tools", "invalid_value", "tools")
        try:
            ids = encode_prompt(trained.tokenizer, turns, tools=tools, options=trained.options)
        except DataError as error:
            raise ApiError(400, f"messages: {error.message}", "invalid_value", "messages") from error
        form = self.server.forms[asked.model] if tools else None
        self.reply(asked, trained, [ids], "messages", form, [tool["function"]["name"] for tool in tools])

    def complete(self) -> None:
        asked: TextAsked = read(self.body(), TextAsked)
        trained, plain = self.known(asked.model), self.server.plain[asked.model]
        try:
            prompts = [plain.text(text) for text in asked.prompts()]
        except BadRow as error:
            raise ApiError(400, f"prompt: {error.detail}", "invalid_value", "prompt") from error
        self.reply(asked, trained, prompts, "prompt")

    def reply(
        self,
        asked: Asked,
        trained: Trained,
        prompts: Sequence[np.ndarray],
        param: str,
        form: Form | None = None,
        tools: Sequence[str] = (),
    ) -> None:
        """Have the prompts answered, and send the answers. form: in which calls of `tools` are read from them."""
        most = self.most(asked, trained, prompts, param)
        shown = form.tokens if form is not None else ()
        requests = [Request(ids, most, asked.sampling(n), asked.stops, shown) for n, ids in enumerate(prompts)]
        try:
            tickets = self.server.batches.submit(asked.model, requests)
        except Full:
            raise ApiError(429, "too many requests are waiting; try again later", "queue_full") from None
        except Closed:
            raise ApiError(503, "the server is shutting down", "shutting_down") from None
        count = sum(len(ids) for ids in prompts)
        answers = (self.read_calls(self.events(ticket), form, tools) for ticket in tickets)
        try:
            if asked.stream:
                self.stream(asked, answers, count)
            else:
                self.send(200, Reply(asked).whole([self.last(events) for events in answers], count))
        finally:
            for ticket in tickets:
                ticket.leave()

    def most(self, asked: Asked, trained: Trained, prompts: Sequence[np.ndarray], param: str) -> int:
        """How long an answer may be. Raises ApiError for what the model or the server does not take."""
        limit, wanted, positions = self.server.limits.max_new_tokens, asked.most(), trained.answerer.positions
        longest = max(len(ids) for ids in prompts)
        if positions is not None and longest + (wanted or 1) > positions:
            said = f" and {wanted:,} for the answer" if wanted else ""
            raise ApiError(
                400,
                f"the model has {positions:,} positions; these are {longest:,} tokens{said}",
                "context_length_exceeded",
                param,
            )
        if wanted is not None and wanted > limit:
            raise ApiError(
                400, f"at most {limit:,} tokens can be asked for (got {wanted:,})", "invalid_value", "max_tokens"
            )
        return wanted or limit

    def events(self, ticket: Ticket) -> Iterator[str | Answer]:
        """What comes of a ticket, the answer last. Raises ConnectionError when the client has gone."""
        while True:
            try:
                event = ticket.next(LOOK_SECONDS)
            except Closed:
                raise ApiError(503, "the server is shutting down", "shutting_down") from None
            except Exception as error:
                raise ApiError(500, f"{type(error).__name__}: {error}", "generation_failed") from error
            if event is None:
                self.refuse_gone()
                continue
            yield event
            if isinstance(event, Answer):
                return

    @staticmethod
    def read_calls(events: Iterator[str | Answer], form: Form | None, tools: Sequence[str]) -> Iterator[str | Answer]:
        """The events, with calls in the answer and not in its text."""
        if form is None:
            yield from events
            return
        reading, said = Reading(form, tools), ""
        for event in events:
            if isinstance(event, Answer):
                text, calls = reading.end()
                yield from [text] if text else []
                yield replace(event, text=said + text, calls=tuple(calls))
            elif text := reading.add(event):
                said += text
                yield text

    @staticmethod
    def last(events: Iterator[str | Answer]) -> Answer:
        return next(event for event in events if isinstance(event, Answer))

    def refuse_gone(self) -> None:
        """Raises ConnectionError when the client has closed its end."""
        poller = select.poll()
        poller.register(self.connection, select.POLLIN)
        if poller.poll(0) and not self.connection.recv(1, socket.MSG_PEEK):
            raise ConnectionAbortedError

    def stream(self, asked: Asked, answering: Iterable[Iterator[str | Answer]], prompt_tokens: int) -> None:
        """Server-sent events, the choices one after the other; an error after the first is an event too."""
        reply, answers = Reply(asked), []
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for number, events in enumerate(answering):
                if reply.chat:
                    self.event(reply.chunk(number, "", first=True))
                for event in events:
                    if isinstance(event, Answer):
                        answers.append(event)
                        if event.calls:
                            self.event(reply.calls(number, event.calls))
                        self.event(reply.chunk(number, "", finish(event)))
                    else:
                        self.event(reply.chunk(number, event))
            if asked.usage_wanted:
                self.event(reply.last(answers, prompt_tokens))
        except ApiError as error:
            self.event(error.body())
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, body: Mapping[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()

    def body(self) -> Any:
        """The request's JSON. Raises ApiError for another type, for one too large, and for what is none."""
        if self.headers.get_content_type() != "application/json":
            raise ApiError(415, "the content type must be application/json", "unsupported_media_type")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise ApiError(411, "a Content-Length is required", "length_required")
        if int(length) > self.server.limits.body:
            raise ApiError(
                413, f"the body may have {self.server.limits.body:,} bytes (got {int(length):,})", "too_large"
            )
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is not JSON: {error}", "invalid_json") from None

    def send(self, status: int, body: Mapping[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status in (429, 503):
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
