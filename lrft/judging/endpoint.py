"""Chat completions of an OpenAI-compatible endpoint, with retries, by the standard library's client."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TRIES = 4
TIMEOUT = 120.0
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP statuses of a request that may succeed when it is repeated"""


class AskingFailed(Exception):
    """kind: what failed, as it is counted: timeout, HTTP 429, connection, reply."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Straight(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: the key would be sent to another address."""

    def redirect_request(self, *redirection: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """url: such as http://127.0.0.1:8000/v1. key: sent as a bearer token, never shown or kept."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = TIMEOUT
    wait: Callable[[float], None] = time.sleep

    def ask(self, text: str, max_tokens: int) -> str:
        """The answer to one user turn, the likeliest. Raises AskingFailed after the last try."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        pause, left = FIRST_WAIT, TRIES
        while True:
            left -= 1
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                with error:  # it holds the connection
                    said = error.read(500).decode(errors="replace")
                failed = AskingFailed(f"HTTP {error.code}", self._masked(said))
                asked = error.headers.get("Retry-After", "")
                if error.code not in AGAIN or not left:
                    raise failed from None
                self.wait(min(float(asked), LONGEST_WAIT) if asked.isdigit() else pause)
            except (TimeoutError, ConnectionError, http.client.HTTPException, urllib.error.URLError) as error:
                late = isinstance(getattr(error, "reason", error), TimeoutError)
                if not left:
                    raise AskingFailed("timeout" if late else "connection", self._masked(str(error))) from None
                self.wait(pause)
            pause = min(2 * pause, LONGEST_WAIT)

    def _once(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.build_opener(Straight()).open(request, timeout=self.timeout) as reply:
            data = reply.read()
        try:
            text = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise AskingFailed("reply", "is not a chat completion") from None
        return text if isinstance(text, str) else ""

    def _masked(self, text: str) -> str:
        """What a server says may repeat the key."""
        return text.replace(self.key, "***") if self.key else text
