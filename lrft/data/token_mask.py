"""From pieces of text to token ids, with a mask that agrees with them by construction.

Each piece is tokenised alone and the ids are joined, so no token lies across the border of an answer: a
prompt's ids are exactly those that generation starts from. What stands before a piece can still decide how it is
tokenised: a tokenizer of Llama 2's kind writes a space at the start of a row and behind each special token, but not
between two characters. So a piece is tokenised behind the added token that stands before it, or behind a fixed
character where other text does, and the ids of that are taken off again. Whether the ids read as the text is checked
for every row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from lrft.data.pieces import Piece, Rendered
from lrft.data.records import BadRow
from lrft.data.rendering import Renderer
from lrft.data.tools import Tool
from lrft.data.turns import Message
from lrft.errors import DataError

_ANCHORS = ("\n", ".", "x")
Ids = list[int]
Before = str | None
"""What stands before a piece: nothing (START), an added token as it is written, or other text (TEXT)"""
START: Before = ""
TEXT: Before = None


@dataclass(frozen=True)
class Encoded:
    """tokens: int32 (n,). trained: bool (n,). spans: (first token, token after the last, answer)."""

    tokens: np.ndarray
    trained: np.ndarray
    spans: tuple[tuple[int, int, str], ...]


def require_usable(tokenizer: Any) -> None:
    """Raise DataError for a tokenizer without a Rust backend or without an end token."""
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, which is required for exact loss masks",
            "Use a model that has a tokenizer.json.",
        )
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token (eos_token), so answers cannot be terminated")


class Encoder:
    """Tokenises pieces with a private copy of a fast tokenizer, whose own settings are never touched.

    bos: the id put before rows that no chat template has written, where they lack it; None when the tokenizer adds
    none itself. A chat template writes all special tokens of its rows: as in generation, none is added to them.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Raises DataError as `require_usable` does."""
        require_usable(tokenizer)
        state = tokenizer.backend_tokenizer.to_str()
        self._normal = _Backend(state)
        self._state = state
        self._without_added: _Backend | None = None
        self._added = set(tokenizer.added_tokens_decoder)
        longest_first = sorted(tokenizer.added_tokens_decoder.values(), key=lambda token: -len(token.content))
        self._tokens = tuple(token.content for token in longest_first if token.content)
        self._swallowing = {token.content for token in longest_first if token.rstrip}
        self._looks_back = self._normal.spaced or bool(self._swallowing)
        self.eos: int = tokenizer.eos_token_id
        bos = tokenizer.bos_token_id
        self.bos: int | None = bos if bos is not None and tokenizer("x")["input_ids"][:1] == [bos] else None

    def __call__(self, samples: Sequence[Rendered], names: Sequence[str] = ()) -> list[Encoded | BadRow]:
        """One result per sample. Raises DataError when a sample's ids do not read as its text.

        names: where the samples came from, for that error.
        """
        parts = self._encode([sample.pieces for sample in samples])
        flat = [list(chain.from_iterable(ids)) for ids in parts]
        self._check(samples, flat, names)
        return [self._assemble(*each) for each in zip(samples, parts, flat, strict=True)]

    def prompt(self, pieces: Sequence[Piece]) -> np.ndarray:
        """Ids of the pieces of a prompt that a chat template has written: int32 (n,)."""
        return np.array(list(chain(*self._encode([pieces])[0])), dtype=np.int32)

    def _encode(self, rows: Sequence[Sequence[Piece]]) -> list[list[Ids]]:
        """Ids of every piece of every row. Equal pieces, such as those of the template, are encoded once."""
        found: dict[tuple[bool, Before], dict[str, Ids]] = {}
        befores = [self._befores(pieces) for pieces in rows]
        for pieces, before in zip(rows, befores, strict=True):
            for piece, context in zip(pieces, before, strict=True):
                found.setdefault((piece.plain, context), {})[piece.text] = []
        for (plain, context), ids in found.items():
            ids.update(zip(ids, self._backend(plain).encode(list(ids), context), strict=True))
        return [
            [found[piece.plain, context][piece.text] for piece, context in zip(pieces, before, strict=True)]
            for pieces, before in zip(rows, befores, strict=True)
        ]

    def _befores(self, pieces: Sequence[Piece]) -> list[Before]:
        """What stands before each piece: START, TEXT, or the added token with the white space that it swallows."""
        if not self._looks_back:
            return [TEXT] * len(pieces)
        known = [START]
        for piece, follows in pairwise(pieces):
            # The plain text of a special token is tokenised without any: it has none before it.
            known.append(TEXT if piece.plain or follows.plain else self._ending(piece.text))
        return known[: len(pieces)]

    def _ending(self, text: str) -> Before:
        """The added token that `text` ends with, and the white space behind it that it swallows; else TEXT."""
        bare = text.rstrip()
        if not text.endswith(self._tokens) and not bare.endswith(self._tokens):  # most texts: some have 1,000 tokens
            return TEXT
        for token in self._tokens:
            if text.endswith(token):
                return token
            if token in self._swallowing and bare.endswith(token):
                return text[len(bare) - len(token) :]
        return TEXT

    def _backend(self, plain: bool) -> _Backend:
        if not plain:
            return self._normal
        if self._without_added is None:
            self._without_added = _Backend(json.dumps({**json.loads(self._state), "added_tokens": []}))
        return self._without_added

    def _assemble(self, sample: Rendered, parts: list[Ids], flat: Ids) -> Encoded | BadRow:
        """`flat`: the ids of all `parts`."""
        for piece, ids in zip(sample.pieces, parts, strict=True):
            if piece.plain and not self._added.isdisjoint(ids):
                return BadRow("special token in the text", f"the tokenizer cannot write {piece.text} as text")
        lengths = [len(ids) for ids in parts]
        row = flat if sample.templated else self._with_bos(flat)
        moved = len(row) - len(flat)
        edges = list(accumulate(lengths, initial=moved))
        spans = [(edges[s.first], edges[s.last], s.answer) for s in sample.spans]
        if sample.add_eos:
            start, stop, answer = spans[-1]
            spans[-1] = (start, stop + 1, answer)
            row = [*row, self.eos]
        mask = np.zeros(len(row), dtype=bool)
        mask[moved : moved + len(flat)] = np.repeat([piece.trained for piece in sample.pieces], lengths)
        mask[moved + len(flat) :] = True
        mask[:1] = False
        return Encoded(np.array(row, dtype=np.int32), mask, tuple(spans))

    def _with_bos(self, ids: Ids) -> Ids:
        return ids if self.bos is None or ids[:1] == [self.bos] else [self.bos, *ids]

    def text(self, ids: np.ndarray) -> str:
        """What the ids read as, without special tokens."""
        return self._normal.decode([ids.tolist()], skip_special=True)[0]

    def _check(self, samples: Sequence[Rendered], rows: list[Ids], names: Sequence[str]) -> None:
        """Cutting the text into pieces must not change what its ids read as."""
        texts = self._normal.decode(rows)
        for k, (sample, text) in enumerate(zip(samples, texts, strict=True)):
            if text == sample.text:
                continue
            # The tokenizer may itself be lossy (lower case, Unicode forms): it is compared with itself.
            whole = self._normal.decode(self._normal.encode([sample.text], START))[0]
            # Behind a special token some tokenizers write a space, which one that is plain text does not get.
            same = "".join(text.split()) == "".join(whole.split()) if sample.marked else text == whole
            if not same:
                at = next((i for i, (a, b) in enumerate(zip(text, whole, strict=False)) if a != b), 0)
                raise DataError(
                    f"{names[k] if names else 'a sample'}: splitting the text at the boundaries of its "
                    f"answers changes its tokens: {text[at : at + 40]!r} instead of {whole[at : at + 40]!r}",
                    "Exact loss masks are not possible with this tokenizer: use a model with another one.",
                )


class _Backend:
    """A tokenizer of the tokenizers library, without truncation, padding or special tokens of its own.

    spaced: it puts a space before any text that it is given.
    """

    def __init__(self, state: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(state)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = False
        alone, behind = self._raw(["x", "\nx"])
        anchor = self._raw(["\n"])[0]
        self.spaced = behind != anchor + alone
        self._anchors = [(a, self._raw([a])[0]) for a in _ANCHORS]

    def _raw(self, texts: Sequence[str]) -> list[Ids]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode(self, texts: Sequence[str], before: Before) -> list[Ids]:
        """Ids of each text where `before` stands before it: START, TEXT, or an added token as it is written."""
        if before == START or (before is None and not self.spaced):
            return self._raw(texts)
        found: list[Ids] = [[] for _ in texts]
        left = list(range(len(texts)))
        for anchor, head in self._anchors if before is None else [(before, self._raw([before])[0])]:
            ids = self._raw([anchor + texts[k] for k in left])
            fits = {k: i[len(head) :] for k, i in zip(left, ids, strict=True) if i[: len(head)] == head}
            for k, rest in fits.items():
                found[k] = rest
            left = [k for k in left if k not in fits]
        for k, alone in zip(left, self._raw([texts[k] for k in left]), strict=True):
            found[k] = alone
        return found

    def decode(self, rows: list[Ids], skip_special: bool = False) -> list[str]:
        return self._tokenizer.decode_batch(rows, skip_special_tokens=skip_special)


def encode_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    template: str | None = None,
    *,
    tools: Sequence[Tool] = (),
    options: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """The ids that generation of the next answer starts from, as in training: int32 (n,).

    template: jinja text; None takes the tokenizer's own. tools: definitions (`lrft.data.tools`). options: as
    data.template_options. Raises DataError when there is no template, or when it refuses the messages.
    """
    text = template or (tokenizer.get_chat_template() if tokenizer.chat_template else None)
    if text is None:
        raise DataError("the tokenizer has no chat template", "Give data.chat_template a .jinja file.")
    try:
        pieces = Renderer(tokenizer, text, "assistant", options).prompt(messages, tools)
    except BadRow as bad:
        raise DataError(str(bad)) from bad
    return Encoder(tokenizer).prompt(pieces)
