"""A server in a thread of this process, and its requests."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lrft.serving.http_server import Server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@contextmanager
def serving(shelf: Any, **options: Any) -> Iterator[Server]:
    server = Server(shelf, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.close()


def call(server: Server, path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, Any]:
    """(status, JSON body, or the events of a stream)"""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    try:
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        told = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request(method or ("GET" if body is None else "POST"), path, sent, told)
        reply = connection.getresponse()
        text = reply.read().decode()
        if reply.headers.get_content_type() != "text/event-stream":
            return reply.status, json.loads(text)
        events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
        assert events.pop() == "[DONE]"
        return reply.status, [json.loads(event) for event in events]
    finally:
        connection.close()
