"""Rows that are answered as a whole: tokenised as a served model would get them, their labels numbered by name.

The tokenizer lays out one text or two by its own rules (special tokens, token types), as pipelines of transformers do.
The text of a special token is text, unless the recipe says that it stands for the token.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from lrft.data.config import Settings
from lrft.data.dataset import Row
from lrft.data.encode import too_long
from lrft.data.ingest import Found, drop, refuse_bad
from lrft.data.records import BadRow
from lrft.data.report import TOO_LONG, DataReport
from lrft.errors import DataError, nearest

CHUNK = 4096
SECOND = "token_type_ids"


def measure_whole(
    samples: Sequence[Found], tokenizer: Any, settings: Settings, report: DataReport
) -> list[tuple[str, Row]]:
    """(role, row) for every sample under the length policy; counts go into `report`. Labels are names yet.

    Raises DataError for bad rows (on_bad_row: error) and long rows (too_long: error).
    """
    rows, lengths, long = [], list[int](), list[tuple[str, int]]()
    types = SECOND in tokenizer.model_input_names
    for item, found, n in encoded(samples, tokenizer, settings.max_length):
        lengths.append(n)
        if n > settings.max_length and settings.too_long == "error":
            long.append((item.source, n))
        elif n > settings.max_length and settings.too_long == "drop":
            item.report.used -= 1
            bad = BadRow(TOO_LONG, f"{n:,} tokens, max_length is {settings.max_length:,}")
            drop(item.report, item.source, bad, item.head)
        else:
            item.report.truncated += n > settings.max_length
            item.report.rows += 1
            rows.append((item.report.role, row_of(item, found, n, types)))
    report.whole, report.several = True, any(item.sample.several for item in samples)
    if settings.on_bad_row == "error":
        refuse_bad(report.sources)
    if long:
        raise too_long(long, lengths, settings, "truncate | drop")
    return rows


def encoded(samples: Sequence[Found], tokenizer: Any, most: int) -> Iterator[tuple[Found, Any, int]]:
    """Samples with their encoding, cut to `most` tokens as the tokenizer does (of two texts the longer one), and their
    whole number of tokens. Raises DataError for a tokenizer without a Rust backend."""
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"{type(tokenizer).__name__} is not a fast tokenizer", "Use a model that has a tokenizer.json.")
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    for chunk in chunks(samples):
        backend.encode_special_tokens = not chunk[0].sample.tokens
        given = [(s.sample.prompt, s.sample.answer) if s.sample.answer else s.sample.prompt for s in chunk]
        found = backend.encode_batch(given)
        lengths = [len(each.ids) for each in found]
        over = [k for k, n in enumerate(lengths) if n > most]
        if over:
            backend.enable_truncation(most)
            for k, cut in zip(over, backend.encode_batch([given[k] for k in over]), strict=True):
                found[k] = cut
            backend.no_truncation()
        yield from zip(chunk, found, lengths, strict=True)


def chunks(samples: Sequence[Found]) -> Iterator[list[Found]]:
    """Not too many at a time, all of a chunk with special tokens read in the same way."""
    for _, alike in groupby(samples, key=lambda item: item.sample.tokens):
        found = list(alike)
        yield from (found[at : at + CHUNK] for at in range(0, len(found), CHUNK))


def row_of(item: Found, found: Any, n: int, types: bool) -> Row:
    """n: tokens before any cut. types: whether to note, as "second", where the tokens of a second text begin."""
    numbers = {name: np.array(values) for name, values in item.sample.numbers.items()}
    if types:
        second = next((k for k, kind in enumerate(found.type_ids) if kind), None)
        numbers["second"] = np.array([] if second is None else [second], dtype=np.float64)
    return Row(
        tokens=np.array(found.ids, dtype=np.int32),
        trained=np.zeros(len(found.ids), dtype=bool),
        prompt_end=0,
        answer=str(item.sample.numbers["label"][0]) if item.sample.numbers else json.dumps(item.sample.classes),
        file=item.file,
        number=item.number,
        cut=n - len(found.ids),
        digest=item.sample.digest(),
        numbers=numbers,
    )


def names_of(row: Row) -> list[str]:
    """The labels of a row that `row_of` made."""
    names: list[str] = json.loads(row.answer)
    return names


def in_order(names: Sequence[str]) -> list[str]:
    """Whole numbers by size, names by the alphabet."""
    numbers = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(set(names), key=(lambda name: (int(name), name)) if numbers else None)


def keep_classes(rows: Sequence[Row], held_out: np.ndarray) -> np.ndarray:
    """`held_out` without rows of a label that no row to train on would have."""
    left = {name for row, out in zip(rows, held_out, strict=True) if not out for name in names_of(row)}
    return np.array(
        [out and left.issuperset(names_of(row)) for row, out in zip(rows, held_out, strict=True)], dtype=bool
    )


def number_labels(
    train: Sequence[Row], validation: Sequence[Row], report: DataReport, known: Sequence[str] | None
) -> tuple[list[Row], list[Row]]:
    """The rows with their labels as numbers in the order of the names, which go into `report` with their counts.

    known: the labels of a model that is asked; None: those of the train rows. Raises DataError for rows with a label
    beyond them, and where there is nothing to tell apart.
    """
    counts = Counter(name for row in train for name in names_of(row))
    held = Counter(name for row in validation for name in names_of(row))
    names = list(known) if known is not None else in_order(list(counts))
    refuse_unknown([*train, *validation], names, "the model" if known is not None else "the train rows")
    if known is None and len(names) < 2 and not report.several:
        only = f"all have the label {names[0]}" if names else "none has a label"
        raise DataError(f"nothing to tell apart: of {len(train):,} train rows {only}")
    report.labels = {name: counts[name] + held[name] for name in names}
    report.label_notes = notes(counts, held, bool(validation)) if known is None else []
    place = {name: k for k, name in enumerate(names)}

    def numbered(row: Row) -> Row:
        own = np.array(sorted(place[name] for name in names_of(row)), dtype=np.float64)
        return replace(row, answer=", ".join(names_of(row)), numbers={**row.numbers, "label": own})

    return [numbered(row) for row in train], [numbered(row) for row in validation]


def refuse_unknown(rows: Sequence[Row], names: Sequence[str], whose: str) -> None:
    """Raises DataError for rows with labels beyond `names`."""
    strange = [(row, name) for row in rows for name in names_of(row) if name not in names]
    if not strange:
        return
    row, name = strange[0]
    close = nearest(name, list(names))
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise DataError(
        f"{len(strange):,} labels are none of {whose}, such as {name!r} in {row.file}{row.number}",
        f"{f'Did you mean {close[0]}? ' if close else ''}Labels of {whose}: {listed}",
    )


def notes(counts: Counter[str], held: Counter[str], validated: bool) -> list[str]:
    """What is to be said of labels that are rare or cannot be validated."""
    once = [name for name, n in counts.items() if n + held[name] == 1]
    absent = [name for name in counts if not held[name] and name not in once] if validated else []
    said = [f"seen once, so learnt from one row and never validated: {shown(once)}"] if once else []
    return said + ([f"without a validation row: {shown(absent)}"] if absent else [])


def shown(names: Sequence[str], most: int = 10) -> str:
    more = len(names) - most
    return f"label{'s' * (len(names) > 1)} {', '.join(names[:most])}" + (f" and {more} more" if more > 0 else "")
