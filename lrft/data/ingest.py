"""From inputs to samples: format found, columns renamed, bad rows counted, `limit` drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrft.data.config import Input, Settings, Where, refuse
from lrft.data.format import (
    LEFT_OUT,
    TELLING,
    detect,
    formats_in_words,
    is_optional,
    other_kind,
    rename,
    sample,
    unclear,
    unused,
)
from lrft.data.records import BadRow, Source
from lrft.data.report import CHOSEN, EXAMPLES, NOT_DRAWN, SourceReport
from lrft.data.sample import NO_TEMPLATE, TWO_SYSTEMS, Sample, is_filled
from lrft.errors import DataError, nearest
from lrft.registry import DEFAULT_ROWS, ROWS


@dataclass(frozen=True)
class Found:
    """A sample with its place, the input it came from and the report that counts it."""

    item: Input
    sample: Sample
    file: str
    number: int
    head: str
    report: SourceReport

    @property
    def source(self) -> str:
        return f"{self.file}{self.number}"


def collect(inputs: Sequence[Input], settings: Settings, where: Where) -> tuple[list[Found], list[SourceReport]]:
    """All usable samples in the order of the inputs, and one report per source.

    Raises DataError when no format fits, when on_bad_row is error and a row is bad; RecipeError for columns.
    """
    samples: list[Found] = []
    reports: list[SourceReport] = []
    for k, item in enumerate(inputs):
        drawn: list[Found] = []
        for source in item.sources:
            report = SourceReport(path=source.path, role=item.role)
            reports.append(report)
            drawn += _read(item, source, report, settings, where)
        samples += _draw(drawn, item.limit, [settings.seed, k])
    if settings.on_bad_row == "error":
        refuse_bad(reports)
    return samples, reports


def refuse_bad(reports: Sequence[SourceReport]) -> None:
    """Raise DataError with the first bad rows when there is any."""
    bad = sum(n for r in reports for reason, n in r.dropped.items() if reason not in CHOSEN)
    if not bad:
        return
    offenders = [e for r in reports for e in r.examples if e["reason"] not in CHOSEN]
    lines = [f"{e['source']}  {e['detail']}   {e['head']}".rstrip() for e in offenders[:EXAMPLES]]
    more = bad - len(lines)
    read = sum(r.read for r in reports)
    title = f"{bad:,} of {read:,} rows are invalid"
    raise DataError(
        "\n".join([title, *lines, *([f"... and {more:,} more"] if more > 0 else [])]),
        # Skipping them all would leave nothing to train on.
        "Fix them, or set data.on_bad_row: skip to drop them; dropped rows are counted in the report."
        if bad < read
        else "Fix them: no other rows are left to train on.",
    )


def _read(item: Input, source: Source, report: SourceReport, settings: Settings, where: Where) -> list[Found]:
    found: list[Found] = []
    seen: dict[str, None] = {}
    make: Callable[[dict[str, Any]], Sample] | None = None
    for record in source.records():
        report.read += 1
        try:
            if isinstance(record.value, BadRow):
                raise record.value
            seen |= dict.fromkeys(record.value)
            if make is None:
                make = _maker(item, source, record.value, report, settings, where)
            _count_unused(rename(record.value, item.columns), report)
            found.append(Found(item, make(record.value), source.name, record.number, record.head, report))
        except BadRow as bad:
            drop(
                report,
                f"{source.name}{record.number}",
                _with_way_out(bad, record.value, item, report.format),
                record.head,
            )
    if report.read == 0:
        raise DataError(f"{source.path}: the file holds no rows")
    if make is not None:
        _require(set(item.columns), seen, item, source, where)
    report.used = len(found)
    return found


def _count_unused(record: dict[str, Any], report: SourceReport) -> None:
    for column in unused(record, report.format):
        report.ignored[column] = report.ignored.get(column, 0) + is_filled(record[column])


def _with_way_out(bad: BadRow, record: Any, item: Input, name: str) -> BadRow:
    """Columns that cannot be used can be left out: all of them, lest each is told of after the other."""
    if bad.field not in TELLING or bad.reason not in (NO_TEMPLATE, TWO_SYSTEMS, f"column {bad.field}"):
        return bad
    renamed = rename(record, item.columns)
    useless = set(unused(renamed, name)) | ({"system", "history"} if bad.reason == NO_TEMPLATE else {bad.field})
    ours = {ours: theirs for theirs, ours in item.columns.items()}
    out = {ours.get(c, c): LEFT_OUT for c in TELLING if c in useless and is_filled(renamed.get(c))}
    way = item.advice(columns={**item.columns, **out})
    return BadRow(bad.reason, f"{bad.detail}. Without: {way}", bad.field)


def _require(columns: set[str], seen: Collection[str], item: Input, source: Source, where: Where) -> None:
    """Raise RecipeError for a column of data.train[].columns that is not there."""
    for theirs in item.columns:
        if theirs in columns and theirs not in seen:
            close = nearest(theirs, seen)
            hint = f" Did you mean {close[0]}?" if close else ""
            refuse(
                where,
                f"{item.key}.columns",
                f"{source.path} has no column {theirs}.{hint} It has {', '.join(seen)}"
                + (f"; {item.advice(columns={})} turns renaming off" if item.key == "--data" else ""),
            )


def drop(report: SourceReport, source: str, bad: BadRow, head: str) -> None:
    """Count a bad row, with its field named in the detail."""
    report.drop(bad.reason, source, f"{bad.field}: {bad.detail}" if bad.field else bad.detail, head)


def _maker(
    item: Input, source: Source, first: dict[str, Any], report: SourceReport, settings: Settings, where: Where
) -> Callable[[dict[str, Any]], Sample]:
    """Decide on the source's format from its first good record; returns what turns records into samples."""
    _require({theirs for theirs, ours in item.columns.items() if not is_optional(ours)}, first, item, source, where)
    for theirs, ours in item.columns.items():
        if ours in first and ours not in item.columns and ours != theirs:
            refuse(
                where,
                f"{item.key}.columns",
                f"{source.path} already has a column {ours}; {theirs} cannot be renamed to it",
            )
    renamed = rename(first, item.columns)
    name = _format(item, source, renamed, settings.kind, where)
    given = source.kind == ".txt" or item.format != "auto"
    report.format = name
    report.decided = ("file type" if source.kind == ".txt" else "given") if given else "found"
    if name in ("messages", "sharegpt") and settings.template is None:
        raise DataError(
            f"{source.path}: conversations ({name}), but the tokenizer has no chat template",
            "Give data.chat_template a .jinja file.",
        )
    if settings.too_long == "split" and name != "text":
        refuse(
            where,
            "data.too_long",
            f"split is for format text; {source.path} is {name}, and the second half of "
            "an answer without its question teaches nothing. Choose error, truncate or drop",
        )
    chat, tokens = settings.template is not None, item.special_tokens == "tokens"
    return lambda value: sample(rename(value, item.columns), name, chat=chat, tokens=tokens)


def _format(item: Input, source: Source, record: dict[str, Any], kind: str, where: Where) -> str:
    refuse_other_kind(item, source, record, kind, where)
    if source.kind == ".txt":
        if item.format not in ("auto", "text"):
            refuse(
                where,
                f"{item.key}.format",
                f"{source.path} is a .txt file, whose format is text, not {item.format}",
            )
        return "text"
    if item.format != "auto":
        return item.format
    name = detect(record, kind)
    if name is None:
        message, keys = unclear(record, kind)
        keys |= {"columns": {**item.columns, **keys["columns"]}} if "columns" in keys else {}
        hint = f"Try {item.advice(**keys)}" if keys else "Rename the columns to match one format."
        raise DataError(f"{source.path}: {message}", hint)
    return name


def refuse_other_kind(item: Input, source: Source, record: dict[str, Any], kind: str, where: Where) -> None:
    """Raise RecipeError for rows that the objective does not take. record: the source's first, its columns renamed.

    Rows of tokens can be made of any columns by renaming, and others of some: what `unclear` says then helps more.
    """
    given = "text" if source.kind == ".txt" else item.format
    if given != "auto" and given not in ROWS[kind].formats:
        key = "training.objective" if item.format == "auto" else f"{item.key}.format"
        wanted = f"the objective takes {ROWS[kind].words} ({formats_in_words(kind)}); {source.path} is read as {given}"
        refuse(where, key, wanted)
    renamed = kind == DEFAULT_ROWS or unclear(record, kind)[1]
    if given == "auto" and not renamed and (text := other_kind(record, kind)):
        wanted = f"takes {ROWS[kind].words} ({formats_in_words(kind)})"
        refuse(where, "training.objective", f"{wanted}, but in {source.path} {text}")


def _draw(found: list[Found], limit: int | None, seed: Sequence[int]) -> list[Found]:
    """`limit` samples, in their old order; the others are counted as not drawn."""
    if limit is None or limit >= len(found):
        return found
    taken = set(np.random.default_rng(seed).choice(len(found), size=limit, replace=False).tolist())
    for k, item in enumerate(found):
        if k not in taken:
            item.report.used -= 1
            item.report.dropped[NOT_DRAWN] = item.report.dropped.get(NOT_DRAWN, 0) + 1
    return [found[k] for k in sorted(taken)]
