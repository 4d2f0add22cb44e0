"""The way from a recipe's data section to tokenised rows, through the cache."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from lrft.data import cache as store
from lrft.data.chat_template import Renderer
from lrft.data.config import Input, Settings, Where, inputs, read_input, settings, validation_input
from lrft.data.dataset import Row, Rows
from lrft.data.encode import encode_rows
from lrft.data.ingest import Found, collect
from lrft.data.report import DataReport, histogram, quantiles
from lrft.data.split import set_apart, split, split_by_default
from lrft.data.tokenize import Encoder, require_usable
from lrft.data.whole import keep_classes, measure_whole, number_labels
from lrft.errors import DataError
from lrft.registry import DEFAULT_ROWS, ROWS
from lrft.utils.seeds import seed_of


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
    share = "none" if found[-1].role == "validation" else section.validation
    by_default = "validation" not in section.model_fields_set
    return _prepare(found, chosen, tokenizer, share, where, cache if section.cache else None, by_default)


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
            train, validation, report = kept
            report.hit = True
            return Prepared(train, validation, report, key, cached=True)
        with _young_garbage_only():
            train, validation, report = _build(found, chosen, tokenizer, share, where, by_default)
        report.key, report.hit = key, None if folder is None else False
        if folder is not None:
            store.save(folder, train, validation, report)
        return Prepared(train, validation, report, key, cached=False)


@contextmanager
def _young_garbage_only() -> Iterator[None]:
    """Without full collections: what a row is made of stays, and each of them would look at all rows again."""
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


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
    del deciding["max_from"]  # who set the limit decides on no row: a resolved recipe writes out what was left open
    del deciding["labels_from"]
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
) -> tuple[Rows, Rows | None, DataReport]:
    samples, reports = collect(found, chosen, where)
    report = DataReport(
        sources=reports,
        max_length=chosen.max_length,
        max_length_from=chosen.max_from,
        parts=list(ROWS[chosen.kind].parts),
    )
    made = _measured(samples, tokenizer, chosen, report)
    train = [row for role, row in made if role == "train"]
    validation = [row for role, row in made if role == "validation"]
    if not train:
        raise _nothing(report)
    if any(item.role == "validation" for item in found):
        if not validation:
            raise DataError(f"{found[-1].sources[0].path}: no valid row in the validation data")
    else:
        digests = [row.digest for row in train]
        if by_default:
            held_out, report.held_out = split_by_default(digests, float(share), chosen.seed)
        else:
            held_out = split(digests, share, chosen.seed)
        if ROWS[chosen.kind].named:
            held_out = keep_classes(train, held_out)
        validation = [row for row, out in zip(train, held_out, strict=True) if out]
        train = [row for row, out in zip(train, held_out, strict=True) if not out]
    if ROWS[chosen.kind].named:
        train, validation = number_labels(train, validation, report, chosen.labels, chosen.labels_from)
    report.prompts = dict(zip(("query", "document"), chosen.prompts, strict=True)) if any(chosen.prompts) else {}
    _total(report, train, validation)
    return Rows.of(train), Rows.of(validation) if validation else None, report


def _measured(samples: Sequence[Found], tokenizer: Any, chosen: Settings, report: DataReport) -> list[tuple[str, Row]]:
    """The samples as rows, each with its role."""
    if ROWS[chosen.kind].whole:
        return measure_whole(samples, tokenizer, chosen, report)
    renderer = Renderer(tokenizer, chosen.template, chosen.train_on, chosen.template_options)
    return encode_rows(samples, renderer, Encoder(tokenizer), chosen, report)


def _nothing(report: DataReport) -> DataError:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
    return DataError(
        f"nothing to train on: {report.read:,} rows read, none used ({reasons or 'no rows'})",
        "Use lrft preview to see why rows were dropped; increase data.max_length if answers are cut off.",
    )


def _total(report: DataReport, train: Sequence[Row], validation: Sequence[Row]) -> None:
    """The totals of the report."""
    report.train_rows, report.validation_rows = len(train), len(validation)
    report.tokens, report.trained_tokens = _tokens(train)
    report.validation_tokens, report.validation_trained_tokens = _tokens(validation)
    lengths = [n for row in (*train, *validation) for n in row.sequences]
    weights = [row.weight for row in (*train, *validation) if row.weight != 1]
    report.weights = {"rows": len(weights), "least": min(weights), "most": max(weights)} if weights else {}
    report.lengths, report.by_length = quantiles(lengths), histogram(lengths)
    known = {row.digest for row in train}
    report.repeated = sum(row.digest in known for row in validation)


def _tokens(rows: Sequence[Row]) -> tuple[int, int]:
    # The first token of a sequence is never trained: see Rows.of.
    firsts = sum(bool(r.trained[at]) for r in rows for at in accumulate((0, *r.sequences[:-1])))
    return sum(len(r.tokens) for r in rows), sum(int(np.count_nonzero(r.trained)) for r in rows) - firsts
