"""The text of an answer while its tokens arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class Growing:
    """An answer that grows token by token, and ends before the first of its stop texts.

    told: gets each new stretch of text as soon as no stop text can begin in it; False ends the answer. shown: special
    tokens that belong to the text.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        told: Callable[[str], bool] = lambda text: True,
        shown: Sequence[str] = (),
    ) -> None:
        self._tokenizer, self._stop, self._told = tokenizer, [text for text in stop if text], told
        special = set(tokenizer.all_special_ids)
        known = {tokenizer.convert_tokens_to_ids(token): token for token in shown}
        self._shown = {number: token for number, token in known.items() if number in special}
        self._stream = DecodeStream(skip_special_tokens=True)
        self._text, self._sent = "", 0
        self.ids: list[int] = []
        self.finish = ""
        """why it has ended: stop, length or cancelled; "" while it grows"""

    @property
    def text(self) -> str:
        """What has been told."""
        return self._text[: self._sent]

    def add(self, token: int) -> None:
        """Take the next token, which is not an end token."""
        self.ids.append(token)
        written = self._shown.get(token) or self._stream.step(self._tokenizer.backend_tokenizer, token)
        self._text += written or ""
        found = [at for text in self._stop if (at := self._text.find(text)) >= 0]
        if found:
            self._text, self.finish = self._text[: min(found)], "stop"
            self._tell(len(self._text))
        else:
            self._tell(len(self._text) - self._held())

    def end(self, finish: str) -> None:
        """No more tokens come. What was held back is told, also the bytes of a character that never became whole."""
        self.finish = self.finish or finish
        whole = self._tokenizer.decode(self.ids, skip_special_tokens=True)
        if whole.startswith(self._text):  # it does not where special tokens are shown
            self._text = whole
        self._tell(len(self._text))

    def _held(self) -> int:
        """How many last characters may be the beginning of a stop text."""
        lengths = (n for text in self._stop for n in range(len(text) - 1, 0, -1) if self._text.endswith(text[:n]))
        return max(lengths, default=0)

    def _tell(self, upto: int) -> None:
        new = self._text[self._sent : max(upto, self._sent)]
        self._sent += len(new)
        if new and not self._told(new):
            self.finish = self.finish or "cancelled"
