"""Rows that the tokenizer lays out: tokenised as a served model would get them, their labels numbered by name.

The tokenizer lays out one text or two by its own rules (special tokens, token types), as pipelines of transformers and
sentence-transformers do. The text of a special token is text, unless the recipe says that it stands for the token.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any, NoReturn

import numpy as np

from lrft.data.config import OF_MODEL, Settings
from lrft.data.dataset import Row, Rows
from lrft.data.ingest import Found, drop, refuse_bad
from lrft.data.records import BadRow
from lrft.data.report import NO_TOKEN, TOO_LONG, DataReport
from lrft.data.sample import Sample
from lrft.data.sides import EQUAL
from lrft.data.tagged import OUTSIDE
from lrft.data.tokenized_rows import TooLong
from lrft.errors import DataError, nearest
from lrft.utils.text import count

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
    report.whole, report.several, silent = True, False, 0
    for item, found, sizes in encoded(samples, tokenizer, settings.max_length, settings.prompts):
        n = max(sizes)
        lengths.append(n)
        report.several = report.several or item.sample.several
        if n > settings.max_length and settings.too_long == "error":
            long.add(item.source, n)
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
            silent += without_token(item.sample, found) if n <= settings.max_length else 0
            yield item.report.role, row_of(item, found, sum(sizes), types, names, settings.labels)
    if silent:
        report.label_notes.append(f"{count(silent, 'word')} of which the tokenizer makes no token, so without a label")
    if settings.on_bad_row == "error":
        refuse_bad(report.sources)
    long.refuse(lengths, "truncate | drop")


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
    samples: Iterable[Found], tokenizer: Any, most: int, prompts: tuple[str, str] = ("", "")
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


def chunks(samples: Iterable[Found]) -> Iterator[list[Found]]:
    """Not too many at a time, all of a chunk with special tokens read in the same way."""
    for _, alike in groupby(samples, key=lambda item: item.sample.tokens):
        while chunk := list(islice(alike, CHUNK)):
            yield chunk


def row_of(
    item: Found, found: Sequence[Any], n: int, types: bool, names: dict[str, int], known: Sequence[str] | None
) -> Row:
    """n: tokens before any cut. types: whether to note, as "second", where the tokens of a second text begin. names:
    of labels, with their numbers; new ones are added. known: as of `meant`."""
    sample, first = item.sample, found[0]
    numbers = {name: np.array(values) for name, values in sample.numbers.items()}
    labels = [meant(name, known) for name in sample.classes]
    if types and not sample.beside:
        second = next((k for k, kind in enumerate(first.type_ids) if kind), None)
        numbers["second"] = np.array([] if second is None else [second], dtype=np.float64)
    if sample.spans:
        numbers["word"] = words_of(sample, first).astype(np.float64)
    if not sample.numbers and not sample.beside:
        numbers["label"] = np.array([names.setdefault(name, len(names)) for name in labels], dtype=np.float64)
    tokens = np.concatenate([np.array(each.ids, dtype=np.int32) for each in found])
    return Row(
        tokens=tokens,
        trained=np.zeros(len(tokens), dtype=bool),
        prompt_end=0,
        answer=str(sample.numbers["label"][0]) if sample.numbers else answer_of(sample, labels),
        file=item.file,
        number=item.number,
        cut=n - len(tokens),
        digest=sample.digest(),
        numbers=numbers,
        parts=tuple(len(each.ids) for each in found) if sample.beside else (),
        entry=item.item.number,
    )


def meant(name: str, known: Sequence[str] | None) -> str:
    """The label that a row's word means: of names that are known, one may be given by its place."""
    if known is None or name in known or not name.isdecimal() or any(map(is_number, known)):
        return name
    return known[int(name)] if int(name) < len(known) else name


def answer_of(sample: Sample, labels: Sequence[str]) -> str:
    """The labels as a reader wants them; of words those that have one."""
    if not sample.spans:
        return ", ".join(labels)
    words = [sample.prompt[first:last] for first, last in sample.spans]
    return ", ".join(f"{word} {label}" for word, label in zip(words, labels, strict=True) if label != OUTSIDE)


def in_order(names: Sequence[str]) -> list[str]:
    """Whole numbers by size, names by the alphabet."""
    numbers = all(map(is_number, names))
    return sorted(set(names), key=(lambda name: (int(name), name)) if numbers else None)


def is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


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
    rows: Rows,
    held_out: np.ndarray,
    made: Mapping[str, int],
    report: DataReport,
    known: Sequence[str] | None,
    whose: str,
) -> Rows:
    """The rows with their labels numbered in the order of the names, which go into `report` with their counts.

    held_out: bool (N,), of the validation rows. made: the names by the numbers that the rows have. known: the labels
    that there are; None: those of the train rows. whose: they are, for the user. Raises DataError for rows with a label
    beyond them, and where there is nothing to tell apart.
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
        _refuse_unknown(len(strange), list(made)[labels[first]], place_of_first, names, whose)
    if known is None and len(names) < 2 and not report.several:
        only = f"all have the label {names[0]}" if names else "none has a label"
        raise DataError(f"nothing to tell apart: of {int((~held_out).sum()):,} train rows {only}")
    report.labels = {name: counts[name] + in_held[name] for name in names}
    report.label_notes += notes(names, counts, in_held, bool(held_out.any())) if whose != OF_MODEL else []
    if "word" not in rows.names:  # labels of words stay in the order of the words
        numbers = numbers[np.lexsort((numbers, owners))]
    return rows.with_flat_numbers("label", numbers.astype(np.float64))


def _counted(labels: np.ndarray, names: Sequence[str]) -> Counter[str]:
    """How often each comes, in the order of the first of each."""
    found, first, counts = np.unique(labels, return_index=True, return_counts=True)
    return Counter({names[found[k]]: int(counts[k]) for k in np.argsort(first)})


def _refuse_unknown(n: int, name: str, source: str, names: Sequence[str], whose: str) -> NoReturn:
    """Raises DataError for labels beyond `names`, the first of which is `name`."""
    close = nearest(name, list(names))
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise DataError(
        f"{n:,} labels are none of {whose}, such as {name!r} in {source}",
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
