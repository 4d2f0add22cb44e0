"""Rows that the tokenizer lays out: tokenised as a served model would get them, their labels numbered by name.

The tokenizer lays out one text or two by its own rules (special tokens, token types), as pipelines of transformers and
sentence-transformers do. The text of a special token is text, unless the recipe says that it stands for the token.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from lrft.data.config import OF_MODEL, Settings
from lrft.data.dataset import Row
from lrft.data.encode import too_long
from lrft.data.ingest import Found, drop, refuse_bad
from lrft.data.records import BadRow
from lrft.data.report import NO_TOKEN, TOO_LONG, DataReport
from lrft.data.sample import Sample
from lrft.data.sides import EQUAL
from lrft.data.tagged import OUTSIDE
from lrft.errors import DataError, nearest
from lrft.utils.text import count

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
    silent = 0
    for item, found, sizes in encoded(samples, tokenizer, settings.max_length, settings.prompts):
        n = max(sizes)
        lengths.append(n)
        if n > settings.max_length and settings.too_long == "error":
            long.append((item.source, n))
        elif n > settings.max_length and settings.too_long == "drop":
            item.report.used -= 1
            bad = BadRow(TOO_LONG, f"{n:,} tokens, max_length is {settings.max_length:,}")
            drop(item.report, item.source, bad, item.head)
        elif bad_row := unusable(item.sample, found):
            item.report.used -= 1
            drop(item.report, item.source, bad_row, item.head)
        else:
            item.report.truncated += n > settings.max_length
            item.report.rows += 1
            rows.append((item.report.role, row_of(item, found, sum(sizes), types)))
            silent += without_token(item.sample, found) if n <= settings.max_length else 0
    report.whole, report.several = True, any(item.sample.several for item in samples)
    if silent:
        report.label_notes.append(f"{count(silent, 'word')} of which the tokenizer makes no token, so without a label")
    if settings.on_bad_row == "error":
        refuse_bad(report.sources)
    if long:
        raise too_long(long, lengths, settings, "truncate | drop")
    return rows


def unusable(sample: Sample, found: Sequence[Any]) -> BadRow | None:
    """Why its tokens teach nothing; None where they do."""
    if sample.spans and not (words_of(sample, found[0]) >= 0).any():
        return BadRow(NO_TOKEN, "no word is left that has a label")
    if sample.beside and any(each.ids == found[1].ids for each in found[2:]):
        return BadRow(EQUAL, "a negative has the tokens of the document")
    if sample.beside and found[0].ids == found[1].ids:
        return BadRow(EQUAL, "query and document have the same tokens")
    return None


def encoded(
    samples: Sequence[Found], tokenizer: Any, most: int, prompts: tuple[str, str] = ("", "")
) -> Iterator[tuple[Found, list[Any], list[int]]]:
    """Samples with the encodings of their sequences, each cut to `most` tokens as the tokenizer does (of two texts the
    longer one), and the whole numbers of their tokens. prompts: before the first sequence of samples that have several,
    and before the others. Raises DataError for a tokenizer without a Rust backend."""
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"{type(tokenizer).__name__} is not a fast tokenizer", "Use a model that has a tokenizer.json.")
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    for chunk in chunks(samples):
        backend.encode_special_tokens = not chunk[0].sample.tokens
        given = [text for each in chunk for text in texts_of(each.sample, prompts)]
        found = backend.encode_batch(given)
        lengths = [len(each.ids) for each in found]
        over = [k for k, n in enumerate(lengths) if n > most]
        if over:
            backend.enable_truncation(most)
            for k, cut in zip(over, backend.encode_batch([given[k] for k in over]), strict=True):
                found[k] = cut
            backend.no_truncation()
        at = 0
        for each in chunk:
            places = slice(at, at + len(each.sample.sequences))
            at = places.stop
            yield each, found[places], lengths[places]


def texts_of(sample: Sample, prompts: tuple[str, str]) -> list[str | tuple[str, str]]:
    """What the tokenizer gets of each sequence: one text, or two."""
    if not sample.beside:
        return [(sample.prompt, sample.answer) if sample.answer else sample.prompt]
    return [prompts[k > 0] + each.prompt for k, each in enumerate(sample.sequences)]


def words_of(sample: Sample, found: Any) -> np.ndarray:
    """The number of the word that each token is of, or begins with; -1 for special tokens: int64 (n,)."""
    numbers = np.full(len(found.ids), -1, dtype=np.int64)
    word = 0
    for k, (first, last) in enumerate(found.offsets):
        if found.special_tokens_mask[k]:
            continue
        while word < len(sample.spans) and sample.spans[word][1] <= first:
            word += 1
        if word < len(sample.spans) and sample.spans[word][0] < last:
            numbers[k] = word
    return numbers


def without_token(sample: Sample, found: Sequence[Any]) -> int:
    """Words that no token begins or lies in."""
    return len(set(range(len(sample.spans))) - set(words_of(sample, found[0]).tolist())) if sample.spans else 0


def chunks(samples: Sequence[Found]) -> Iterator[list[Found]]:
    """Not too many at a time, all of a chunk with special tokens read in the same way."""
    for _, alike in groupby(samples, key=lambda item: item.sample.tokens):
        found = list(alike)
        yield from (found[at : at + CHUNK] for at in range(0, len(found), CHUNK))


def row_of(item: Found, found: Sequence[Any], n: int, types: bool) -> Row:
    """n: tokens before any cut. types: whether to note, as "second", where the tokens of a second text begin."""
    sample, first = item.sample, found[0]
    numbers = {name: np.array(values) for name, values in sample.numbers.items()}
    if types and not sample.beside:
        second = next((k for k, kind in enumerate(first.type_ids) if kind), None)
        numbers["second"] = np.array([] if second is None else [second], dtype=np.float64)
    if sample.spans:
        numbers["word"] = words_of(sample, first).astype(np.float64)
    tokens = np.concatenate([np.array(each.ids, dtype=np.int32) for each in found])
    return Row(
        tokens=tokens,
        trained=np.zeros(len(tokens), dtype=bool),
        prompt_end=0,
        answer=str(sample.numbers["label"][0]) if sample.numbers else json.dumps([sample.classes, words_in(sample)]),
        file=item.file,
        number=item.number,
        cut=n - len(tokens),
        digest=sample.digest(),
        numbers=numbers,
        parts=tuple(len(each.ids) for each in found) if sample.beside else (),
        entry=item.item.number,
    )


def words_in(sample: Sample) -> list[str]:
    return [sample.prompt[first:last] for first, last in sample.spans]


def names_of(row: Row) -> list[str]:
    """The labels of a row that `row_of` made."""
    names: list[str] = json.loads(row.answer)[0]
    return names


def in_order(names: Sequence[str]) -> list[str]:
    """Whole numbers by size, names by the alphabet."""
    numbers = all(map(is_number, names))
    return sorted(set(names), key=(lambda name: (int(name), name)) if numbers else None)


def keep_classes(rows: Sequence[Row], held_out: np.ndarray) -> np.ndarray:
    """`held_out` without rows of a label that no row to train on would have."""
    left = {name for row, out in zip(rows, held_out, strict=True) if not out for name in names_of(row)}
    return np.array(
        [out and left.issuperset(names_of(row)) for row, out in zip(rows, held_out, strict=True)], dtype=bool
    )


def number_labels(
    train: Sequence[Row], validation: Sequence[Row], report: DataReport, known: Sequence[str] | None, whose: str
) -> tuple[list[Row], list[Row]]:
    """The rows with their labels as numbers in the order of the names, which go into `report` with their counts.

    known: the labels that there are; None: those of the train rows. whose: they are, for the user. Raises DataError for
    rows with a label beyond them, and where there is nothing to tell apart.
    """
    names = list(known) if known is not None else in_order([name for row in train for name in names_of(row)])
    place = {name: k for k, name in enumerate(names)}
    if known is not None and not any(is_number(name) for name in names):  # rows may have places for names
        place |= {str(k): k for k in range(len(names))}
    refuse_unknown([*train, *validation], place, names, whose)
    counts, held = (Counter(names[place[n]] for row in rows for n in names_of(row)) for rows in (train, validation))
    if known is None and len(names) < 2 and not report.several:
        only = f"all have the label {names[0]}" if names else "none has a label"
        raise DataError(f"nothing to tell apart: of {len(train):,} train rows {only}")
    report.labels = {name: counts[name] + held[name] for name in names}
    report.label_notes += notes(names, counts, held, bool(validation)) if whose != OF_MODEL else []
    return [numbered(row, names, place) for row in train], [numbered(row, names, place) for row in validation]


def numbered(row: Row, names: Sequence[str], place: Mapping[str, int]) -> Row:
    """A row of `row_of` with the numbers of its labels, in order; of its words', in the order of the words."""
    own, words = json.loads(row.answer)
    numbers = [place[name] for name in own]
    if words:
        answer = ", ".join(f"{w} {names[k]}" for w, k in zip(words, numbers, strict=True) if names[k] != OUTSIDE)
    else:
        answer, numbers = ", ".join(names[k] for k in numbers), sorted(numbers)
    return replace(row, answer=answer, numbers={**row.numbers, "label": np.array(numbers, dtype=np.float64)})


def is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def refuse_unknown(rows: Sequence[Row], known: Collection[str], names: Sequence[str], whose: str) -> None:
    """Raises DataError for rows with labels that are not `known`. names: those to be shown."""
    strange = [(row, name) for row in rows for name in names_of(row) if name not in known]
    if not strange:
        return
    row, name = strange[0]
    close = nearest(name, list(names))
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise DataError(
        f"{len(strange):,} labels are none of {whose}, such as {name!r} in {row.file}{row.number}",
        f"{f'Did you mean {close[0]}? ' if close else ''}Labels of {whose}: {listed}",
    )


def notes(names: Sequence[str], counts: Counter[str], held: Counter[str], validated: bool) -> list[str]:
    """What is to be said of labels that are rare or cannot be validated."""
    never = [name for name in names if not counts[name]]
    once = [name for name in names if counts[name] == 1 and not held[name]]
    absent = [name for name in counts if not held[name] and name not in once] if validated else []
    said = [f"without a train row, so never learnt: {shown(never)}"] if never else []
    said += [f"seen once, so learnt from one row and never validated: {shown(once)}"] if once else []
    return said + ([f"without a validation row: {shown(absent)}"] if absent else [])


def shown(names: Sequence[str], most: int = 10) -> str:
    more = len(names) - most
    return f"label{'s' * (len(names) > 1)} {', '.join(names[:most])}" + (f" and {more} more" if more > 0 else "")
