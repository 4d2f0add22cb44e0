"""Tools of `lrft serve`: given to the template, and calls read from answers as the template writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chat_templates
import pytest
from serving_here import CHAT, call, serving

from lrft.data.prompts import Asking
from lrft.data.token_mask import encode_prompt
from lrft.serving.answerer import Answer, Answerer
from lrft.serving.load import Trained
from lrft.serving.text import Growing
from lrft.serving.tool_calls import FORMS, Call, Form, Reading, form_of

TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
ASK = {"role": "user", "content": "how is it?"}
HERMES, MISTRAL, LLAMA = FORMS
# family -> (text of an answer, what is said of it, its calls)
ANSWERS = {
    "qwen3": (
        'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>',
        "Let me look.",
        [{"city": "Köln"}, {}],
    ),
    "llama31": ('{"name": "weather", "parameters": {"city": "Köln"}}', "", [{"city": "Köln"}]),
    "mistral": ('[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Köln"}}]', "", [{"city": "Köln"}]),
}


def test_the_form_is_asked_of_the_template() -> None:
    found = {name: form_of(Asking(chat_templates.tokenizer(name))) for name in chat_templates.TEMPLATES}
    assert found == {
        **{"qwen3": HERMES, "marked": HERMES, "llama31": LLAMA, "mistral": MISTRAL},
        **{"gemma": None, "gpt-oss": None, "deepseek": None},
    }


@pytest.mark.parametrize(
    ("form", "text", "said", "calls"),
    [
        (HERMES, "a < b <tool b", "a < b <tool b", []),
        (HERMES, 'x <tool_call>{"name": "other", "arguments": {}}</tool_call>', None, []),
        (HERMES, 'x <tool_call>{"name": "weather", "arguments": [1]}</tool_call>', None, []),
        (HERMES, 'x <tool_call>{"name": "weather", "argum', None, []),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {}}</tool_call> and more', None, []),
        (HERMES, "x <tool_call>" + "[" * 5000 + "</tool_call>", None, []),
        (HERMES, '\n<tool_call>{"name": "weather", "arguments": {"a": "<x>"}}</tool_call>', "", [{"a": "<x>"}]),
        (LLAMA, ' {"name": "weather", "parameters": {"a": 1}}', "", [{"a": 1}]),
        (LLAMA, 'It is {"name": "weather", "parameters": {}}', None, []),
        (LLAMA, '{"a": 1}', None, []),
        (LLAMA, "", "", []),
        (MISTRAL, 'Yes. [TOOL_CALLS]weather[ARGS]{"a": 1}', "Yes.", [{"a": 1}]),
        (MISTRAL, '[TOOL_CALLS]weather[CALL_ID]abc[ARGS]{}[TOOL_CALLS]weather[ARGS]{"b": 2}', "", [{}, {"b": 2}]),
        (MISTRAL, "[TOOL_CALLS]{}", None, []),
    ],
)
def test_a_text_is_read_the_same_in_any_pieces(form: Form, text: str, said: str | None, calls: list[dict]) -> None:
    for size in (1, 3, 1000):
        reading = Reading(form, ["weather"])
        shown = [reading.add(text[at : at + size]) for at in range(0, len(text), size)]
        assert "[TOOL_CALLS]" not in "".join(shown)
        rest, found = reading.end()
        assert "".join(shown) + rest == (text if said is None else said)
        assert found == [Call("weather", arguments) for arguments in calls]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Trained], list[list[int]]]:
    """Models with the templates of families, which answer as a model of the family would; and what they were asked."""
    asked: list[list[int]] = []

    def answer(self: Answerer, requests: list[Any]) -> list[Answer]:
        made = []
        for request in requests:
            asked.append(request.ids.tolist())
            name = next(name for name, one in shelf.items() if one.answerer is self)
            growing = Growing(self.tokenizer, request.stop, request.told, request.shown)
            for token in self.tokenizer(ANSWERS[name][0], add_special_tokens=False)["input_ids"]:
                growing.add(token)
            growing.end("stop")
            made.append(Answer(growing.text, len(growing.ids), growing.finish))
        return made

    monkeypatch.setattr(Answerer, "answer", answer)
    monkeypatch.setattr(Answerer, "positions", None)
    shelf = {}
    for name in (*ANSWERS, "gemma"):
        tokenizer = chat_templates.tokenizer(name)
        answerer = Answerer(None, tokenizer, ())
        shelf[name] = Trained(tokenizer, Path(), None, Asking(tokenizer), answerer, {})
    return shelf, asked


@pytest.mark.parametrize("name", ANSWERS)
def test_tools_go_to_the_template_and_calls_come_back_as_openai_s_whole_and_streamed(
    served: tuple[dict[str, Trained], list[list[int]]], name: str
) -> None:
    shelf, asked = served
    body = {"model": name, "messages": [ASK], "tools": [TOOL], "max_tokens": 500, "temperature": 0}
    _, said, arguments = ANSWERS[name]
    with serving(shelf) as server:
        status, whole = call(server, CHAT, body)
        assert (status, asked[-1]) == (200, encode_prompt(shelf[name].tokenizer, [ASK], tools=[TOOL]).tolist())
        choice = whole["choices"][0]
        calls = choice["message"]["tool_calls"]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", said or None)
        assert [json.loads(one["function"]["arguments"]) for one in calls] == arguments
        assert {one["function"]["name"] for one in calls} == {"weather"}
        _, events = call(server, CHAT, body | {"stream": True})
        deltas = [event["choices"][0]["delta"] for event in events]
        assert "".join(delta.get("content") or "" for delta in deltas) == said
        streamed = [one for delta in deltas for one in delta.get("tool_calls", [])]
        assert [one["function"] for one in streamed] == [one["function"] for one in calls]
        assert [one["index"] for one in streamed] == list(range(len(calls)))
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
        # The call and its result are the next question.
        turns = [ASK, {**choice["message"], "tool_calls": calls[:1]}]
        turns.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": "sun"})
        assert call(server, CHAT, body | {"messages": turns})[0] == 200
        assert "sun" in shelf[name].tokenizer.decode(asked[-1])
        # Without tools, or with none to be called, nothing is read from the text.
        for without in ({"tools": []}, {"tool_choice": "none"}):
            plain = call(server, CHAT, body | without)[1]["choices"][0]
            assert (plain["finish_reason"], "tool_calls" in plain["message"]) == ("stop", False)
            assert asked[-1] == encode_prompt(shelf[name].tokenizer, [ASK]).tolist()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "gemma"}, "the chat template of gemma takes no tools"),
        ({"tools": [{"type": "function"}]}, "tools[0]: has no name"),
        ({"tools": [3]}, "tools.0: input should be a valid dictionary"),
        ({"tool_choice": "required"}, "tool_choice: input should be 'auto' or 'none'"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls is not supported"),
        ({"messages": [ASK, {"role": "assistant"}]}, "messages.1.content: field required"),
        ({"messages": [{**ASK, "tool_calls": [{}]}]}, "messages.0 is a turn of user, but has keys of assistant"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{}]}]}, "messages.1.tool_calls[0]: has no name"),
    ],
)
def test_what_no_tool_or_call_is_is_400(
    served: tuple[dict[str, Trained], list[list[int]]], more: dict[str, Any], message: str
) -> None:
    with serving(served[0]) as server:
        status, reply = call(server, CHAT, {"model": "qwen3", "messages": [ASK], "tools": [TOOL], **more})
    assert (status, message in reply["error"]["message"]) == (400, True), reply
