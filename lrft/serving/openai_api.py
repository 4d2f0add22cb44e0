"""The shapes of OpenAI's API: what a client may ask, what it gets, and the bodies of its errors.

Parameters that would change the answer and are not supported are refused, never passed over.
"""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrft.data.tools import Tool, calls_of, tools_of
from lrft.data.turns import Message
from lrft.evaluation.sampling import Sampling
from lrft.serving.answerer import Answer
from lrft.serving.tool_calls import Call

STOPS = 4  # texts that a request may stop at, as OpenAI has it
# What says nothing about the answer's text.
WITHOUT_EFFECT = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
# Accepted with the value that means that nothing is asked.
NEUTRAL: dict[str, Any] = {"n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0, "logprobs": False}
NEUTRAL |= {"echo": False, "logit_bias": {}, "tools": [], "response_format": {"type": "text"}}
NEUTRAL |= {"parallel_tool_calls": True}


class ApiError(Exception):
    """An answer that is an error. param: the parameter that is wrong."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: None = None

    def read(self, place: str) -> Message:
        """As a chat template takes it. Raises BadRow for calls that are none, and ApiError for keys of other roles."""
        given = {"assistant": self.tool_calls, "tool": self.tool_call_id or self.name}
        for role, value in given.items():
            if value is not None and role != self.role:
                raise ApiError(400, f"{place} is a turn of {self.role}, but has keys of {role}", "invalid_value")
        if self.content is None and self.tool_calls is None:
            raise ApiError(400, f"{place}.content: field required", "invalid_value", f"{place}.content")
        message: Message = {"role": self.role}
        if self.content is not None:
            text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
            message["content"] = text
        if self.tool_calls is not None:
            message["tool_calls"] = calls_of(self.tool_calls, f"{place}.tool_calls")
        of_tool = {"tool_call_id": self.tool_call_id, "name": self.name}
        return message | {key: value for key, value in of_tool.items() if value is not None}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(BaseModel):
    """What both kinds of completions share."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_wanted(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, number: int = 0) -> Sampling:
        """Of the choice `number`. OpenAI's defaults: temperature 1, and another answer each time."""
        seed = secrets.randbits(62) if self.seed is None else abs(self.seed) % 2**62
        return Sampling(
            1.0 if self.temperature is None else self.temperature,
            1.0 if self.top_p is None else self.top_p,
            seed + number,
        )

    def most(self) -> int | None:
        return self.max_tokens


class ChatAsked(Asked):
    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: Literal["auto", "none"] = "auto"

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools that may be called. Raises BadRow for what is none."""
        return tools_of(self.tools, "tools") if self.tool_choice == "auto" else ()

    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class TextAsked(Asked):
    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]

    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


def read(body: Any, kind: type[Asked]) -> Any:
    """A request's body as `kind`. Raises ApiError 400 that names the parameter."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    kept = {}
    for key, value in body.items():
        if key in WITHOUT_EFFECT or value is None or (key in NEUTRAL and value == NEUTRAL[key]):
            continue
        if key not in kind.model_fields:
            raise ApiError(400, f"{key} is not supported", "unsupported_parameter", key)
        kept[key] = value
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(
            str(part) for part in first["loc"] if not str(part).startswith(("list[", "str", "constrained"))
        )
        raise ApiError(400, f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}", "invalid_value", place) from None


class Reply:
    """The bodies of one answer to one request, whole or in chunks."""

    def __init__(self, asked: Asked) -> None:
        chat = isinstance(asked, ChatAsked)
        self.chat, self.model = chat, asked.model
        self.id = ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())

    def whole(self, answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
        choices = [self._choice(n, {"message": message(a)}, a.text, finish(a)) for n, a in enumerate(answers)]
        kind = "chat.completion" if self.chat else "text_completion"
        return self._body(kind, choices) | {"usage": usage(answers, prompt_tokens)}

    def chunk(self, number: int, text: str, finish: str | None = None, *, first: bool = False) -> dict[str, Any]:
        delta = {**({"role": "assistant"} if first else {}), **({"content": text} if text or first else {})}
        return self._chunk([self._choice(number, {"delta": delta}, text, finish)])

    def calls(self, number: int, found: Sequence[Call]) -> dict[str, Any]:
        """The chunk with calls, each whole."""
        delta = {"tool_calls": [{"index": k, **call} for k, call in enumerate(called(found))]}
        return self._chunk([self._choice(number, {"delta": delta}, "", None)])

    def last(self, answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
        """The chunk of a stream that has its usage."""
        return self._chunk([]) | {"usage": usage(answers, prompt_tokens)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._body("chat.completion.chunk" if self.chat else "text_completion", choices)

    def _choice(self, number: int, said: Mapping[str, Any], text: str, finish: str | None) -> dict[str, Any]:
        own = said if self.chat else {"text": text}
        return {"index": number, **own, "logprobs": None, "finish_reason": finish}

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def message(answer: Answer) -> dict[str, Any]:
    """An assistant's turn. With calls, content is null where nothing else was said."""
    said: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    return said | {"content": answer.text or None, "tool_calls": called(answer.calls)} if answer.calls else said


def called(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls with ids of nine letters and digits, the only ones that some templates take back."""
    return [
        {
            "id": "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9)),
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in calls
    ]


def finish(answer: Answer) -> str:
    return "tool_calls" if answer.calls and answer.finish == "stop" else answer.finish


def usage(answers: Sequence[Answer], prompt_tokens: int) -> dict[str, int]:
    made = sum(answer.tokens for answer in answers)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}
