"""Rows that are answered as a whole: tokenised as a served model would get them, their labels numbered by name.

The tokenizer lays out one text or two by its own rules (special tokens, token types), as pipelines of transformers do.
The text of a special token is text, unless the recipe says that it stands for the token.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any, NoReturn

import numpy as np

from lrft.data.config import Settings
from lrft.data.dataset import Row, Rows
from lrft.data.encode import TooLong
from lrft.data.ingest import Found, drop, refuse_bad
from lrft.data.records import BadRow
from lrft.data.report import TOO_LONG, DataReport
from lrft.errors import DataError, nearest

CHUNK = 4096
SECOND = "token_type_ids"


def measure_whole(
    samples: Iterable[Found], tokenizer: Any, settings: Settings, report: DataReport, names: dict[str, int]
) -> Iterator[tuple[str, Row]]:
    """(role, row) for every sample under the length policy; counts go into `report`, the last with the last row.

    names: filled with the labels and their numbers, as they come: `number_labels` gives them others.
    Raises DataError for bad rows (on_bad_row: error) and long rows (too_long: error), behind the last row.
    """
    lengths, long = array("q"), TooLong(settings)
    types = SECOND in tokenizer.model_input_names
    report.whole, report.several = True, False
    for item, found, n in encoded(samples, tokenizer, settings.max_length):
        lengths.append(n)
        report.several = report.several or item.sample.several
        if n > settings.max_length and settings.too_long == "error":
            long.add(item.source, n)
        elif n > settings.max_length and settings.too_long == "drop":
            item.report.used -= 1
            bad = BadRow(TOO_LONG, f"{n:,} tokens, max_length is {settings.max_length:,}")
            drop(item.report, item.source, bad, item.head)
        else:
            item.report.truncated += n > settings.max_length
            item.report.rows += 1
            yield item.report.role, row_of(item, found, n, types, names)
    if settings.on_bad_row == "error":
        refuse_bad(report.sources)
    long.refuse(lengths, "truncate | drop")


def encoded(samples: Iterable[Found], tokenizer: Any, most: int) -> Iterator[tuple[Found, Any, int]]:
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


def chunks(samples: Iterable[Found]) -> Iterator[list[Found]]:
    """Not too many at a time, all of a chunk with special tokens read in the same way."""
    for _, alike in groupby(samples, key=lambda item: item.sample.tokens):
        while chunk := list(islice(alike, CHUNK)):
            yield chunk


def row_of(item: Found, found: Any, n: int, types: bool, names: dict[str, int]) -> Row:
    """n: tokens before any cut. types: whether to note, as "second", where the tokens of a second text begin. names:
    of labels, with their numbers; new ones are added."""
    sample = item.sample
    numbers = {name: np.array(values) for name, values in sample.numbers.items()}
    if types:
        second = next((k for k, kind in enumerate(found.type_ids) if kind), None)
        numbers["second"] = np.array([] if second is None else [second], dtype=np.float64)
    if not sample.numbers:
        numbers["label"] = np.array([names.setdefault(name, len(names)) for name in sample.classes], dtype=np.float64)
    return Row(
        tokens=np.array(found.ids, dtype=np.int32),
        trained=np.zeros(len(found.ids), dtype=bool),
        prompt_end=0,
        answer=str(sample.numbers["label"][0]) if sample.numbers else ", ".join(sample.classes),
        file=item.file,
        number=item.number,
        cut=n - len(found.ids),
        digest=sample.digest(),
        numbers=numbers,
    )


def in_order(names: Sequence[str]) -> list[str]:
    """Whole numbers by size, names by the alphabet."""
    numbers = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(set(names), key=(lambda name: (int(name), name)) if numbers else None)


def keep_classes(rows: Rows, held_out: np.ndarray) -> np.ndarray:
    """`held_out` without rows of a label that no row to train on would have."""
    labels, owners = _labels(rows)
    alone = ~np.isin(labels, labels[~held_out[owners]])
    return held_out & (np.bincount(owners[alone], minlength=len(rows)) == 0)


def _labels(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the labels of all rows, end to end, and the row of each: int64."""
    labels, offsets = rows.flat_numbers("label")
    return labels.astype(np.int64), np.repeat(np.arange(len(rows)), np.diff(offsets))


def number_labels(
    rows: Rows, held_out: np.ndarray, made: Mapping[str, int], report: DataReport, known: Sequence[str] | None
) -> Rows:
    """The rows with their labels numbered in the order of the names, which go into `report` with their counts.

    held_out: bool (N,), of the validation rows. made: the names by the numbers that the rows have. known: the labels
    of a model that is asked; None: those of the train rows. Raises DataError for rows with a label beyond them, and
    where there is nothing to tell apart.
    """
    labels, owners = _labels(rows)
    held = held_out[owners]
    counts, in_held = _counted(labels[~held], list(made)), _counted(labels[held], list(made))
    names = list(known) if known is not None else in_order(list(counts))
    place = {name: k for k, name in enumerate(names)}
    numbers = np.array([place.get(name, -1) for name in made], dtype=np.int64)[labels]
    if (numbers < 0).any():
        strange = np.flatnonzero(numbers < 0)
        first = strange[np.argmin(held[strange])]  # of the train rows, where there is one
        place_of_first = rows.source(int(owners[first]))
        _refuse_unknown(len(strange), list(made)[labels[first]], place_of_first, names, known is not None)
    if known is None and len(names) < 2 and not report.several:
        only = f"all have the label {names[0]}" if names else "none has a label"
        raise DataError(f"nothing to tell apart: of {int((~held_out).sum()):,} train rows {only}")
    report.labels = {name: counts[name] + in_held[name] for name in names}
    report.label_notes = notes(counts, in_held, bool(held_out.any())) if known is None else []
    return rows.with_flat_numbers("label", numbers[np.lexsort((numbers, owners))].astype(np.float64))


def _counted(labels: np.ndarray, names: Sequence[str]) -> Counter[str]:
    """How often each comes, in the order of the first of each."""
    found, first, counts = np.unique(labels, return_index=True, return_counts=True)
    return Counter({names[found[k]]: int(counts[k]) for k in np.argsort(first)})


def _refuse_unknown(count: int, name: str, source: str, names: Sequence[str], asked: bool) -> NoReturn:
    """Raises DataError for labels beyond `names`, the first of which is `name`."""
    whose = "the model" if asked else "the train rows"
    close = nearest(name, list(names))
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise DataError(
        f"{count:,} labels are none of {whose}, such as {name!r} in {source}",
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
