"""Prompts to be answered, from the same files and formats as training rows: each is tokenised as training does it.

A row need not have an answer. Where it has one (a last turn of the assistant, a completion, an output), the prompt is
what stands before it. Prompts of plain text, `{"prompt": text}` and `{"text": text}`, are the turn of a user, or are
continued as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from lrft.data.chat_template import writes_tools
from lrft.data.format import Reading, Sample, detect, rename, sample, unclear
from lrft.data.readers import find
from lrft.data.records import BadRow
from lrft.data.rendering import Renderer
from lrft.data.token_mask import Encoder
from lrft.errors import DataError, UsageError
from lrft.utils.text import count

STAND_IN = "x"
"""The answer of a row that has none: the prompt is what stands before it"""
BY = "adapter"
"""The column that names who answers a row, where several can"""
SHOWN = 10


@dataclass(frozen=True)
class Prompt:
    """row: the record as it was read. ids: int32 (n,), what generation starts from. by: who is to answer."""

    place: str
    row: dict[str, Any]
    ids: np.ndarray
    by: str = ""


class Asking:
    """Makes prompts with a tokenizer. plain: prompts of plain text are continued as they are, without the template.
    options: as data.template_options of the recipe that trained."""

    def __init__(self, tokenizer: Any, *, plain: bool = False, options: Mapping[str, Any] | None = None) -> None:
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        self.chat, self.plain = template is not None, plain or template is None
        self._render = Renderer(tokenizer, template, "last-assistant", options)
        self._encode = Encoder(tokenizer)
        self.reading = Reading(self.chat, writes_tools=template is not None and writes_tools(template))

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The token that the template writes behind an answer, if any."""
        if self.plain:
            return ()
        turns = {"role": "user", "content": STAND_IN}, {"role": "assistant", "content": STAND_IN}
        try:
            end = self._render(Sample(messages=turns)).end
        except BadRow:  # it refuses the probe, not every conversation
            return ()
        return (end,) if end else ()

    def rendered(self, sample: Sample) -> str:
        """The sample's last answer as the template writes it, without the token that ends it. Raises BadRow."""
        made = self._render(sample)
        text = "".join(piece.text for piece in made.pieces[made.spans[-1].first : made.spans[-1].last])
        return text.removesuffix(made.end) if made.end else text

    def ids(self, asked: Sample) -> np.ndarray:
        """int32 (n,): what stands before the sample's answer; at least one token. Raises BadRow."""
        if not self.plain and asked.prompt:
            turns = {"role": "user", "content": asked.prompt}, {"role": "assistant", "content": STAND_IN}
            asked = Sample(messages=turns, tokens=asked.tokens)
        encoded = self._encode([self._render(replace(asked, untrained=frozenset()))])[0]
        if isinstance(encoded, BadRow):
            raise encoded
        ids = encoded.tokens[: encoded.spans[-1][0]]
        if not len(ids):
            raise BadRow("empty prompt", "has no tokens: there is nothing to answer")
        return ids

    def text(self, text: str, system: str | None = None) -> np.ndarray:
        """The prompt of one text. Raises BadRow."""
        if self.plain:
            return self.ids(Sample(prompt=text, answer=STAND_IN))
        turns = {**({} if system is None else {"system": system}), "user": text, "assistant": STAND_IN}
        return self.ids(Sample(messages=tuple({"role": role, "content": said} for role, said in turns.items())))


def read_prompts(
    path: str,
    asking: Mapping[str, Asking],
    *,
    form: str = "auto",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[Prompt]:
    """Every row of the file or folder as a prompt, in order. form, columns: as in an entry of data.train.

    asking: of each that may answer, by name; with several, a row's column `adapter` names its own, and the first
    answers rows that name none.

    Raises DataError for files that cannot be read, and for rows that are no prompts, with their places.
    """
    prompts: list[Prompt] = []
    bad: list[str] = []
    for place, value in islice(_records(path), limit):
        try:
            if isinstance(value, BadRow):
                raise value
            by, record = _asked_of(rename(value, columns or {}), asking)
            prompts.append(Prompt(place, value, asking[by].ids(_sample(record, form, asking[by].reading)), by))
        except BadRow as error:
            bad.append(f"{place}  {error.field}: {error.detail}" if error.field else f"{place}  {error.detail}")
    if bad:
        more = [f"... and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
        raise DataError("\n".join([f"{path}: {count(len(bad), 'row')} cannot be asked", *bad[:SHOWN], *more]))
    if not prompts:
        raise DataError(f"{path}: no rows")
    return prompts


def _records(path: str) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    for source in find(path, "train"):
        for record in source.records():
            yield f"{source.name}{record.number}", record.value


def _asked_of(record: dict[str, Any], asking: Mapping[str, Asking]) -> tuple[str, dict[str, Any]]:
    """(the name of who is to answer, the record without it). Raises BadRow for a name that is not there."""
    first = next(iter(asking))
    if len(asking) == 1 or record.get(BY) is None:
        return first, record
    if not isinstance(record[BY], str) or record[BY] not in asking:
        raise BadRow("unknown adapter", f"there is no {record[BY]!r}; there are {', '.join(asking)}", BY)
    return record[BY], {key: value for key, value in record.items() if key != BY}


def _sample(record: dict[str, Any], form: str, reading: Reading) -> Sample:
    named = _answered(record)
    named.pop("weight", None)  # of training: a row of weight 0 has a prompt too
    found = detect(named) if form == "auto" else form
    if found is None:
        raise BadRow("unknown format", unclear(named)[0])
    made = sample(named, found, reading)
    return made if made.document is None else Sample(prompt=made.document, answer=STAND_IN)


def _answered(record: dict[str, Any]) -> dict[str, Any]:
    """The record with an answer, where it has none."""
    turn = {"role": "assistant", "content": STAND_IN}
    for field in ("messages", "conversations"):
        turns = record.get(field)
        if isinstance(turns, list) and turns and not _is_answer(turns[-1]):
            return {**record, field: [*turns, turn]}
    if "prompt" in record and record.get("completion") is None:
        return {**record, "completion": [turn] if isinstance(record["prompt"], list) else STAND_IN}
    if "instruction" in record and record.get("output") is None:
        return {**record, "output": STAND_IN}
    return record


def _is_answer(turn: Any) -> bool:
    return isinstance(turn, dict) and (turn.get("role") or turn.get("from")) in ("assistant", "gpt")


def one_prompt(asking: Asking, text: str, system: str | None) -> np.ndarray:
    """The prompt of one text. Raises UsageError when it cannot be one."""
    try:
        return asking.text(text, system)
    except BadRow as error:
        raise UsageError(f"the prompt {error.detail}") from error
