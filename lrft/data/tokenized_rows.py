"""From samples to tokenised rows of a permitted length."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import numpy as np

from lrft.data.config import Settings
from lrft.data.dataset import Row
from lrft.data.ingest import Found, drop, refuse_bad
from lrft.data.pieces import Rendered
from lrft.data.records import BadRow
from lrft.data.rendering import Renderer
from lrft.data.report import EXAMPLES, NO_TOKEN, TOO_LONG, DataReport, quantile_words, quantiles
from lrft.data.token_mask import Encoded, Encoder
from lrft.errors import DataError

CHUNK = 512
Item = tuple[Found, list[Rendered], list[Encoded]]
Begun = tuple[list[tuple[Found, list[Rendered] | BadRow]], "Future[list[Encoded | BadRow]]"]


def tokenized(samples: Iterable[Found], renderer: Renderer, encoder: Encoder) -> Iterator[Item]:
    """Samples with the texts and the tokens of their sequences, in order. A bad row is counted and left out.

    Rendering is Python and encoding is Rust, which does not hold Python's lock: one chunk is encoded while the next
    is rendered. Raises DataError with the sample's place when its answers cannot be told from its questions.
    """
    with ThreadPoolExecutor(max_workers=1) as beside:
        for rendered, encoding in _one_ahead(_begin(chunk, renderer, encoder, beside) for chunk in _chunks(samples)):
            encoded = iter(encoding.result())
            for item, texts in rendered:
                if isinstance(texts, BadRow):
                    _leave_out(item, texts)
                    continue
                ids = [next(encoded) for _ in texts]
                good = [each for each in ids if not isinstance(each, BadRow)]
                if bad := next((each for each in ids if isinstance(each, BadRow)), None):
                    _leave_out(item, bad)
                else:
                    yield item, texts, good


def _chunks(samples: Iterable[Found]) -> Iterator[list[Found]]:
    left = iter(samples)
    while chunk := list(islice(left, CHUNK)):
        yield chunk


def _begin(chunk: Sequence[Found], renderer: Renderer, encoder: Encoder, beside: Executor) -> Begun:
    """Render `chunk` and have it encoded: each sample with its text or what is wrong, and the ids of those texts."""
    rendered = [(item, _render(item, renderer)) for item in chunk]
    good = [(item.source, text) for item, texts in rendered if not isinstance(texts, BadRow) for text in texts]
    return rendered, beside.submit(encoder, [text for _, text in good], [source for source, _ in good])


def _one_ahead(items: Iterator[Begun]) -> Iterator[Begun]:
    """The items, each handed out when the one after it has been made."""
    last: list[Begun] = []
    for item in items:
        yield from last
        last = [item]
    yield from last


def _render(item: Found, renderer: Renderer) -> list[Rendered] | BadRow:
    try:
        return [renderer(sample) for sample in item.sample.sequences]
    except BadRow as bad:
        return bad
    except DataError as error:
        raise DataError(f"{item.source}: {error.message}", error.hint) from error


def _leave_out(item: Found, bad: BadRow) -> None:
    item.report.used -= 1
    drop(item.report, item.source, bad, item.head)


def encode_rows(
    samples: Iterable[Found], renderer: Renderer, encoder: Encoder, settings: Settings, report: DataReport
) -> Iterator[tuple[str, Row]]:
    """(role, row) for every row within max_length that has something to learn; counts go into `report`, the last of
    them with the last row.

    Raises DataError for bad rows (on_bad_row: error) and long rows (too_long: error), behind the last row.
    """
    lengths, long = array("q"), TooLong(settings)
    ends: dict[str, None] = {}
    special_rows: dict[str, tuple[Found, list[str]]] = {}
    open_end = chat = False
    documents = True
    for item, texts, encoded in tokenized(samples, renderer, encoder):
        if settings.at_once and settings.on_bad_row == "error":
            refuse_bad([item.report])
        chat = chat or bool(item.sample.messages)
        documents = documents and item.sample.document is not None
        n = max(len(each.tokens) for each in encoded)
        lengths.append(n)
        if n > settings.max_length and settings.too_long == "error":
            long.add(item.source, n)
            if settings.at_once:
                long.refuse(lengths, "truncate | drop")
            continue
        made = _fit(item, encoded, settings, encoder)
        if isinstance(made, BadRow):
            _leave_out(item, made)
            continue
        marked = any(text.marked for text in texts)
        found = renderer.special_in(item.sample) if marked or item.sample.tokens else []
        special = marked or bool(found)
        if found:
            special_rows.setdefault(item.report.path, (item, found))
        item.report.special_text += special
        report.special_text += special and not item.sample.tokens
        report.special_read += special and item.sample.tokens
        foreign = renderer.foreign_in(item.sample)
        report.foreign_text += bool(foreign)
        report.foreign_tokens += [mark for mark in foreign if mark not in report.foreign_tokens]
        report.altered += any(text.altered for text in texts)
        ends |= dict.fromkeys(text.end for text in texts if text.end)
        open_end = open_end or not all(text.end for text in texts)
        item.report.truncated += made[-1].cut > 0
        item.report.rows += len(made)
        if item.sample.label and item.report.role == "train":
            report.labels[item.sample.label] = report.labels.get(item.sample.label, 0) + 1
        for row in made:
            yield item.report.role, row
    if settings.on_bad_row == "error":
        refuse_bad(report.sources)
    for item, found in special_rows.values():
        _ask_about_special(item, found)
    long.refuse(lengths, "split | truncate | drop" if documents else "truncate | drop")
    report.opening = renderer.template.opening if chat else ""
    report.end_tokens = list(ends)
    report.end_token_trained = bool(ends) and not open_end


def _ask_about_special(item: Found, found: Sequence[str]) -> None:
    """Raise DataError where most rows of a source hold the text of special tokens and nobody said what it is.

    item: the first of them, with the tokens `found` in it.
    """
    source = item.report
    if item.item.special_tokens != "auto" or 2 * source.special_text <= source.used:
        return
    raise DataError(
        f"{source.path}: {source.special_text:,} of {source.used:,} rows hold the text of special tokens, such as "
        f"{' '.join(found[:3])} in {item.source}: are they already rendered with a chat template?",
        f"To encode it as the special tokens: {item.item.advice(special_tokens='tokens')}; to encode it as "
        f"plain text: "
        f"{item.item.advice(special_tokens='text')}. Rendered rows are trained as a whole; to train on answers "
        "only, provide the conversations as messages.",
    )


def _fit(item: Found, encoded: Sequence[Encoded], settings: Settings, encoder: Encoder) -> list[Row] | BadRow:
    """The rows of one sample under the length policy (not `error`): one, or several with `split`."""
    n = max(len(each.tokens) for each in encoded)
    if n > settings.max_length and settings.too_long == "drop":
        return BadRow(TOO_LONG, f"{n:,} tokens, max_length is {settings.max_length:,}")
    if n > settings.max_length and settings.too_long == "split":
        return _split(item, encoded[0], settings.max_length, encoder)
    most = settings.max_length
    row = _row(item, encoded, most)
    if not all(each.trained[:most].any() for each in encoded):
        cut = f": the whole answer is beyond token {most:,}" if row.cut else ""
        return BadRow(NO_TOKEN, f"no trained tokens{cut}")
    if row.cut and len(encoded) > 1 and len({each.tokens[:most].tobytes() for each in encoded}) < len(encoded):
        return BadRow(TOO_LONG, f"what its {len(encoded)} sequences differ in is beyond token {most:,}")
    return [row]


def _row(item: Found, encoded: Sequence[Encoded], most: int) -> Row:
    """One row of sequences of at most `most` tokens each, cut at the right."""
    first = encoded[0]
    inside = [span for span in first.spans if span[0] < most] or first.spans[:1]
    start, _, answer = inside[-1]
    return Row(
        tokens=_joined([each.tokens[:most] for each in encoded]),
        trained=_joined([each.trained[:most] for each in encoded]),
        # Nothing stands before the first token of a document: generation starts from that token.
        prompt_end=max(start, 1),
        answer=answer,
        file=item.file,
        number=item.number,
        cut=sum(max(0, len(each.tokens) - most) for each in encoded),
        digest=item.sample.digest(),
        parts=tuple(min(len(each.tokens), most) for each in encoded) if len(encoded) > 1 else (),
        numbers={name: np.array(values, dtype=np.float64) for name, values in item.sample.numbers.items()},
        entry=item.item.number,
        weight=item.sample.weight,
    )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _split(item: Found, encoded: Encoded, most: int, encoder: Encoder) -> list[Row]:
    """Rows of at most `most` tokens in which every token but the document's first is trained exactly once.

    A piece begins with BOS where the tokenizer has it, else with the last token of the piece before.
    """
    tokens, step = encoded.tokens, most - 1
    rows = []
    for at in range(1, len(tokens), step):
        head = tokens[at - 1] if encoder.bos is None else encoder.bos
        part = np.concatenate([np.array([head], dtype=np.int32), tokens[at : at + step]])
        trained = np.arange(len(part)) > 0
        digest = int.from_bytes(hashlib.sha256(part.tobytes()).digest()[:8])
        text = encoder.text(part[1:])
        row = Row(part, trained, 1, text, item.file, item.number, digest=digest)
        rows.append(replace(row, entry=item.item.number, weight=item.sample.weight))
    return rows


class TooLong:
    """Rows that are longer than allowed: how many, and the first of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._first: list[tuple[str, int]] = []
        self._count = 0

    def add(self, source: str, tokens: int) -> None:
        self._count += 1
        if self._count <= EXAMPLES:
            self._first.append((source, tokens))

    def refuse(self, lengths: Sequence[int], choices: str) -> None:
        """Raise DataError when there is any. lengths: of all rows. choices: of data.too_long, for them."""
        if not self._count:
            return
        most = self._settings.max_length
        lines = [f"{source}  {n:,} tokens" for source, n in self._first]
        more = self._count - len(lines)
        choices = f"data.too_long: {choices}"
        if self._settings.max_from == "the model":
            hint = f"The model has {most:,} positions. Set {choices}."
        else:
            hint = f"Set data.max_length: {max(lengths)} to keep them all, or {choices}."
        title = (
            f"{self._count:,} of {len(lengths):,} rows ({self._count / len(lengths):.1%}) are longer than "
            f"{most:,} tokens ({self._settings.max_from}). Lengths: {quantile_words(quantiles(lengths))}"
        )
        raise DataError("\n".join([title, *lines, *([f"... and {more:,} more"] if more > 0 else [])]), hint)
