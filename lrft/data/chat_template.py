"""A chat template as it is applied: what it writes for turns and tools, and how it wants calls to be spelt.

Everything goes through the tokenizer's own apply_chat_template, so what is rendered is what generation will use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from lrft.data.records import BadRow
from lrft.data.tools import CALLS, Tool, with_text_arguments
from lrft.data.turns import Message

REASONING = ("reasoning_content", "thinking", "reasoning")
"""What templates call the thoughts of a turn; transformers gives them under the first two"""
Spelling = Callable[[Message], Message]
# Ways to spell calls, the usual one first: some templates need a content, and some join arguments to text.
SPELLINGS: tuple[Spelling, ...] = (
    lambda message: message,
    lambda message: {"content": "", **message},
    with_text_arguments,
    lambda message: {"content": "", **with_text_arguments(message)},
)
_ASKED: Message = {"role": "user", "content": "x"}
_CALLED = ("probed_tool", "probed_key")
_FUNCTION = {"name": _CALLED[0], "arguments": {_CALLED[1]: "y"}}
_CALLING: Message = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "id": "call00000", "function": _FUNCTION}],
}
_PARAMETERS = {"type": "object", "properties": {}}
_DEFINED = ({"type": "function", "function": {"name": "other", "description": "x", "parameters": _PARAMETERS}},)

_GIVEN = ("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now", "namespace", "dict", "range")


class ChatTemplate:
    """The template that a tokenizer is used with.

    text: the jinja text, or None for a tokenizer without one. options (data.template_options): further values for it.
    """

    def __init__(self, tokenizer: Any, text: str | None, options: Mapping[str, Any] | None = None) -> None:
        self._tokenizer, self._text, self._options = tokenizer, text, dict(options or {})

    @cached_property
    def opening(self) -> str:
        """What the template writes before an answer although no generation prompt has it; "" for none."""
        if self._text is None or "add_generation_prompt" in self._text:
            return ""
        asked: list[Message] = [{"role": "user", "content": "x"}]
        try:
            written = self.before_answer(asked)[len(self.render(asked, prompt=True)) :]
        except BadRow:  # it refuses the probe, not every row
            return ""
        return written if written.strip() else ""

    def before_answer(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """What stands before an answer that follows `messages`, as the template writes it. Raises BadRow."""
        one, two = (self.render([*messages, {"role": "assistant", "content": text}], tools) for text in ("A", "B"))
        return one[: agree(one, two)]

    @cached_property
    def _calls(self) -> Spelling | None:
        """How this template wants calls to be spelt; None when it writes none."""
        for spelling in SPELLINGS:
            try:
                written = self._written([_ASKED, spelling(_CALLING)], _DEFINED, prompt=False)
            except BadRow:
                continue
            # Python's own quotes are those of a map that was joined to text as it is.
            if all(word in written for word in _CALLED) and f"'{_CALLED[1]}'" not in written:
                return spelling
        return None

    def known_roles(self, messages: Sequence[Message]) -> Sequence[Message]:
        """A developer's turn is a system turn for templates that know no developer."""
        if "developer" in (self._text or ""):
            return messages
        return [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]

    def refuse_unwritten(self, messages: Sequence[Message]) -> None:
        """Raise BadRow for what the template has no words for: it would leave it out, and nobody would know."""
        if "tool" not in (self._text or "") and any(m["role"] == "tool" for m in messages):
            raise BadRow("unknown role", "the chat template has no tool turns")
        if any("tool_calls" in m for m in messages) and self._calls is None:
            raise BadRow(CALLS, "the chat template writes no tool calls")
        thoughts = any("reasoning_content" in m for m in messages)
        if thoughts and not any(name in (self._text or "") for name in REASONING):
            raise BadRow("reasoning", f"the chat template reads none of {', '.join(REASONING)}")

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), prompt: bool = False) -> str:
        """The text of a conversation; with `prompt`, what generation of the next answer starts from. Raises BadRow."""
        spell = self._calls if any("tool_calls" in m for m in messages) else None
        return self._written([spell(m) for m in messages] if spell else messages, tools, prompt)

    def _written(self, messages: Sequence[Message], tools: Sequence[Tool], prompt: bool) -> str:
        """As stock transformers renders it. Raises BadRow."""
        from jinja2.exceptions import TemplateError

        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=self._text,
                tokenize=False,
                add_generation_prompt=prompt,
                **self._options,
            )
        except (
            TemplateError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
        ) as error:  # a template joins what it gets
            raise BadRow("rejected by the chat template", f"the chat template rejects it: {error}") from error


def template_names(template: str) -> set[str]:
    """The values that a chat template reads beside the conversation, its tools and the tokenizer's tokens."""
    from jinja2 import Environment, meta

    # A tag of transformers, which says nothing of values.
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    found = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain))
    return {name for name in found if name not in _GIVEN and not name.endswith("_token")}


def writes_tools(template: str) -> bool:
    return "tools" in template


def agree(a: str, b: str) -> int:
    """How many first characters two texts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
