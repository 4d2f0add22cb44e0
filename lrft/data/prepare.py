"""The way from a recipe's data section to tokenised rows, through the cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from lrft.data import cache as store
from lrft.data.config import Input, Settings, Where, inputs, read_input, settings, validation_input
from lrft.data.dataset import Row, Rows
from lrft.data.growing import GrowingRows
from lrft.data.ingest import Found, collect
from lrft.data.rendering import Renderer
from lrft.data.report import DataReport, histogram, quantiles
from lrft.data.split import set_apart, split, split_by_default
from lrft.data.streaming import RowStream
from lrft.data.token_mask import Encoder, require_usable
from lrft.data.tokenized_rows import encode_rows
from lrft.data.whole import keep_classes, measure_whole, number_labels
from lrft.errors import DataError
from lrft.registry import DEFAULT_ROWS, ROWS
from lrft.utils.seeds import seed_of
from lrft.utils.text import count


@dataclass(frozen=True)
class Prepared:
    """key: sha256 of all that decided on the rows. cached: they were found in the cache. auxiliary: beside those of
    each step, for a part that asks for them."""

    train: Rows
    validation: Rows | None
    report: DataReport
    key: str
    cached: bool
    auxiliary: Rows | None = None
    stream: RowStream | None = None
    """where the rows are made while the run goes on; `train` is the first of them"""

    def rename(self, change: Callable[[str], str]) -> None:
        """Pass the names of the data's files through `change`, in the report and in the rows' places."""
        for source in self.report.sources:
            source.path = change(source.path)
            for example in source.examples:
                example["source"] = change(example["source"])
        for rows in (self.train, self.validation, self.auxiliary):
            if rows is not None:
                rows.rename(change)


def prepare(
    section: Any,
    tokenizer: Any,
    *,
    seed: int,
    limit: int | None,
    where: Where,
    cache: Path,
    kind: str = DEFAULT_ROWS,
) -> Prepared:
    """Read, render, tokenise, measure and split the data of a recipe.

    section: the recipe's data section. limit: the model's number of positions. where: place of a key in the
    recipe. cache: folder below which data/<key>/ is kept, unless section.cache is false. kind: of rows, that the
    objective takes.

    Raises:
        DataError: nothing to read, bad rows, long rows, an empty side of the split.
        RecipeError: a key of the data section does not fit the data, the tokenizer or the model.
    """
    chosen = settings(section, tokenizer, seed=seed, limit=limit, where=where, kind=kind)
    found = inputs(section, where=where)
    if section.streaming:
        return _streamed(found, replace(chosen, at_once=True), tokenizer, section, where, cache)
    share = "none" if found[-1].role == "validation" else section.validation
    by_default = "validation" not in section.model_fields_set
    return _prepare(found, chosen, tokenizer, share, where, cache if section.cache else None, by_default)


def _streamed(
    found: Sequence[Input], chosen: Settings, tokenizer: Any, section: Any, where: Where, cache: Path
) -> Prepared:
    """The stream of the train entries, its first rows, and the validation rows of a path."""
    require_usable(tokenizer)
    train = [item for item in found if item.role == "train"]
    report, counted = _new_report(chosen), _new_report(chosen)

    def stream_into(report: DataReport) -> RowStream:
        def make(items: Sequence[Input]) -> Iterator[Row]:
            samples = collect(items, chosen, where, report.sources)
            return (row for _, row in _measured(samples, tokenizer, chosen, report, {}))

        return RowStream(train, make, report, window=section.window, seed=chosen.seed, shuffle=section.shuffle)

    first, validation = stream_into(report).first(section.window), None
    _total(report, first, np.zeros(len(first), dtype=bool), np.zeros(len(first), dtype=np.uint64))
    drawn = f"each is drawn from {count(section.window, 'row')}" if section.shuffle else "in their order"
    aside = "; no validation rows are held out" if not isinstance(section.validation, str) else ""
    report.held_out = f"streamed, {drawn}: these are the first rows{aside}"
    if not len(first):
        raise _nothing(report)
    if others := [replace(item, role="train") for item in found if item.role == "validation"]:
        made = _prepare(
            others, replace(chosen, at_once=False), tokenizer, "none", where, cache if section.cache else None
        )
        validation = made.train
        report.sources += [replace(source, role="validation") for source in made.report.sources]
        report.validation_rows, report.validation_tokens = made.report.train_rows, made.report.tokens
        report.validation_trained_tokens = made.report.trained_tokens
    deciding = _deciding(found, chosen, "none") | {"window": section.window, "shuffle": section.shuffle}
    report.key = store.make_key(deciding, tokenizer)
    return Prepared(first, validation, report, report.key, cached=False, stream=stream_into(counted))


def _new_report(chosen: Settings) -> DataReport:
    return DataReport(
        max_length=chosen.max_length, max_length_from=chosen.max_from, parts=list(ROWS[chosen.kind].parts)
    )


def with_rows_apart(prepared: Prepared, share: float, *, seed: int) -> Prepared:
    """A share of the training rows as auxiliary rows. Raises DataError when none would be left to train on."""
    rows = prepared.train
    digests = [int.from_bytes(sha256(rows.tokens(i).tobytes()).digest()[:8], "big") for i in range(len(rows))]
    apart = set_apart(digests, share, seed_of(seed, "auxiliary rows"))
    return replace(prepared, train=rows.slice(np.flatnonzero(~apart)), auxiliary=rows.slice(np.flatnonzero(apart)))


def prepare_file(
    entry: Any,
    section: Any,
    tokenizer: Any,
    *,
    seed: int,
    limit: int | None,
    where: Where,
    cache: Path | None = None,
    kind: str = DEFAULT_ROWS,
    labels: Sequence[str] | None = None,
) -> tuple[Rows, DataReport]:
    """One set without a split, by the same rules. entry: a path, or an entry of data.train.

    labels: that rows may have, in the order of their numbers; None takes those that they have.
    A path is read in the format and with the columns of the section's train entries, when these agree.
    Raises as `prepare` does.
    """
    chosen = settings(section, tokenizer, seed=seed, limit=limit, where=where, kind=kind, labels=labels)
    if isinstance(entry, str | Path):
        found = replace(validation_input(str(entry), section, where=where), key="--data", role="train")
    else:
        found = read_input(entry, "--data", "train", where=where)
    prepared = _prepare([found], chosen, tokenizer, "none", where, cache)
    return prepared.train, prepared.report


def _prepare(
    found: Sequence[Input],
    chosen: Settings,
    tokenizer: Any,
    share: float | int | str,
    where: Where,
    cache: Path | None,
    by_default: bool = False,
) -> Prepared:
    """by_default: `share` is nobody's wish, and gives way where it fits badly."""
    if not ROWS[chosen.kind].whole:
        require_usable(tokenizer)
    key = store.make_key(_deciding(found, chosen, share) | {"by default": by_default}, tokenizer)
    with store.locked(cache, key) if cache is not None else nullcontext() as folder:
        if folder is not None and (kept := store.load(folder)) is not None:
            return Prepared(*kept, key, cached=True)
        with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
            rows, held_out, report = _build(found, chosen, tokenizer, share, where, by_default, Path(place).parent)
            report.key, report.hit = key, None if folder is None else False
            store.save(Path(place), rows, held_out, report)
            return Prepared(*store.made(Path(place)), key, cached=False)


def _deciding(found: Sequence[Input], chosen: Settings, share: float | int | str) -> dict[str, Any]:
    """Everything but the tokenizer that decides on the rows, as JSON values."""
    data = [
        {
            "role": item.role,
            "sources": [[source.name, source.digest()] for source in item.sources],
            "format": item.format,
            "columns": item.columns,
            "limit": item.limit,
            "special_tokens": item.special_tokens,
            "wordings": item.wordings,
            "tools": item.tools,
        }
        for item in found
    ]
    deciding = asdict(chosen)
    # Who set the limit decides on no row: a resolved recipe writes out what was left open. Nor when a bad one is told,
    # and whose the labels are.
    del deciding["max_from"], deciding["at_once"], deciding["labels_from"]
    if not any(chosen.prompts):
        del deciding["prompts"]
    return {"inputs": data, "settings": deciding, "validation": share}


def _build(
    found: Sequence[Input],
    chosen: Settings,
    tokenizer: Any,
    share: float | int | str,
    where: Where,
    by_default: bool,
    folder: Path,
) -> tuple[Rows, np.ndarray, DataReport]:
    """The rows, which of them are held out: bool (N,), and the report. folder: where they lie while they are made."""
    report = _new_report(chosen)
    names: dict[str, int] = {}
    with GrowingRows(folder) as growing:
        for role, row in _measured(collect(found, chosen, where, report.sources), tokenizer, chosen, report, names):
            report.add_weight(row.weight)
            growing.add(row, role == "validation")
        rows, digests, held_out = growing.finished()
    if held_out.all():
        raise _nothing(report)
    if any(item.role == "validation" for item in found):
        if not held_out.any():
            raise DataError(f"{found[-1].sources[0].path}: no valid row in the validation data")
    else:
        if by_default:
            held_out, report.held_out = split_by_default(digests, float(share), chosen.seed)
        else:
            held_out = split(digests, share, chosen.seed)
        if ROWS[chosen.kind].named:
            held_out = keep_classes(rows, held_out)
    if ROWS[chosen.kind].named:
        rows = number_labels(rows, held_out, names, report, chosen.labels, chosen.labels_from)
    report.prompts = dict(zip(("query", "document"), chosen.prompts, strict=True)) if any(chosen.prompts) else {}
    _total(report, rows, held_out, digests)
    return rows, held_out, report


def _measured(
    samples: Iterable[Found], tokenizer: Any, chosen: Settings, report: DataReport, names: dict[str, int]
) -> Iterator[tuple[str, Row]]:
    """The samples as rows, each with its role. names: filled with those of labels."""
    if ROWS[chosen.kind].whole:
        return measure_whole(samples, tokenizer, chosen, report, names)
    renderer = Renderer(tokenizer, chosen.template, chosen.train_on, chosen.template_options)
    return encode_rows(samples, renderer, Encoder(tokenizer), chosen, report)


def _nothing(report: DataReport) -> DataError:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
    return DataError(
        f"nothing to train on: {report.read:,} rows read, none used ({reasons or 'no rows'})",
        "Use lrft preview to see why rows were dropped; increase data.max_length if answers are cut off.",
    )


def _total(report: DataReport, rows: Rows, held_out: np.ndarray, digests: np.ndarray) -> None:
    """The totals of the report. held_out: bool (N,), of the validation rows. digests: uint64 (N,), of the contents."""
    tokens, trained = rows.lengths, rows.trained_counts()
    report.train_rows, report.validation_rows = int((~held_out).sum()), int(held_out.sum())
    report.tokens, report.trained_tokens = int(tokens[~held_out].sum()), int(trained[~held_out].sum())
    report.validation_tokens = int(tokens[held_out].sum())
    report.validation_trained_tokens = int(trained[held_out].sum())
    lengths = rows.sequence_lengths
    report.lengths, report.by_length = quantiles(lengths), histogram(lengths)
    report.repeated = int(np.isin(digests[held_out], digests[~held_out]).sum())
