"""A conversation with a model: its turns, and the commands that a person types between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lrft.data.token_mask import encode_prompt
from lrft.data.turns import Message
from lrft.errors import UsageError, nearest
from lrft.evaluation.sampling import Sampling
from lrft.serving.answerer import Answerer, Request
from lrft.serving.load import Trained
from lrft.utils.files import write_text
from lrft.utils.seeds import seed_of


@dataclass
class Conversation:
    """turns: system, user and assistant, in order. told: gets each answer as it is written."""

    trained: Trained
    sampling: Sampling
    max_new_tokens: int
    told: Callable[[str], object]
    turns: list[Message] = field(default_factory=list)
    asked: int = 0
    """answers so far, each drawn from a seed of its own"""

    def say(self, text: str) -> None:
        """Ask, and keep question and answer. An interrupted answer is kept as far as it was written.

        Raises UsageError and DataError, and keeps nothing, for what cannot be asked.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        answer, interrupted = self._answer(self.trained.answerer, turns)
        # A template may refuse an empty answer in the next turn, and it says nothing.
        if answer.strip():
            self.turns = [*turns, {"role": "assistant", "content": answer}]
        elif not interrupted:
            self.told("(no answer)")

    def base(self) -> None:
        """What the base says to the last question, in the same conversation. It is not kept."""
        last = next((n for n in range(len(self.turns), 0, -1) if self.turns[n - 1]["role"] == "user"), 0)
        if not last:
            raise UsageError("nothing has been asked yet")
        self._answer(self.trained.base, self.turns[:last])

    def reset(self) -> None:
        """Forget all but the system turn."""
        self.turns = [turn for turn in self.turns[:1] if turn["role"] == "system"]

    def system(self, text: str) -> None:
        """Begin again behind this system turn; "" for none."""
        self.turns = [{"role": "system", "content": text}] if text else []

    def save(self, path: Path) -> None:
        """The conversation as one row of training data. Raises UsageError when there is nothing, or a file."""
        if not any(turn["role"] == "assistant" for turn in self.turns):
            raise UsageError("nothing has been answered yet")
        if path.exists() or not path.parent.is_dir():
            raise UsageError(f"{path} exists" if path.exists() else f"{path.parent} is not a folder")
        write_text(path, json.dumps({"messages": self.turns}, ensure_ascii=False) + "\n")

    def _answer(self, answerer: Answerer, turns: list[Message]) -> tuple[str, bool]:
        """(the answer, whether Ctrl-C ended it)"""
        written: list[str] = []

        def told(text: str) -> bool:
            written.append(text)
            self.told(text)
            return True

        sampling = replace(self.sampling, seed=seed_of(self.sampling.seed, "answer", self.asked))
        ids = encode_prompt(self.trained.tokenizer, turns, options=self.trained.options)
        self.asked += 1
        try:
            answerer.answer([Request(ids, self.max_new_tokens, sampling, told=told)])
        except KeyboardInterrupt:
            return "".join(written), True
        return "".join(written), False


HELP = """\
/base          what the base says to the last question
/system TEXT   begin again with this system turn
/reset         forget the conversation, but for its system turn
/save FILE     the conversation as a row of training data
/quit          leave, as does the end of the input; Ctrl-C ends an answer"""


def obey(conversation: Conversation, line: str) -> str | None:
    """Do what a line that begins with / says. Returns what to print; None to leave. Raises LrftError."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word == "/quit":
        return None
    if word == "/help":
        return HELP
    if word == "/base":
        conversation.base()
        return ""
    if word == "/reset":
        conversation.reset()
        return "the conversation is forgotten"
    if word == "/system":
        conversation.system(rest)
        return "a new conversation" + ("" if rest else " without a system turn")
    if word == "/save":
        if not rest:
            raise UsageError("/save requires a file")
        conversation.save(Path(rest).expanduser())
        return f"saved to {rest}"
    close = nearest(word, ["/base", "/help", "/quit", "/reset", "/save", "/system"])
    raise UsageError(f"{word} is not a command", f"Did you mean {close[0]}?" if close else "/help lists them.")
