"""From inputs to samples: format found, columns renamed, bad rows counted, `limit` drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lrft.data.chat_template import writes_tools
from lrft.data.config import Input, Settings, Where, refuse
from lrft.data.format import (
    LEFT_OUT,
    OPTIONAL,
    TELLING,
    Reading,
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
from lrft.data.wording import columns_of, fill
from lrft.errors import DataError, nearest
from lrft.registry import DEFAULT_ROWS, ROWS


class Found(NamedTuple):
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


def collect(inputs: Sequence[Input], settings: Settings, where: Where, reports: list[SourceReport]) -> Iterator[Found]:
    """The usable samples in the order of the inputs; one report per source is appended to `reports`.

    Where on_bad_row is error, what stands behind a first bad row is read and counted, and not handed out: the caller
    ends with `refuse_bad`. Raises DataError when no format fits; RecipeError for columns.
    """
    for k, item in enumerate(inputs):
        taken = _taken(item, settings, where, [settings.seed, k])
        number, failed = 0, any(map(_bad, reports))
        for source in item.sources:
            report = SourceReport(path=source.path, role=item.role)
            reports.append(report)
            for found in _read(item, source, report, settings, where):
                if taken is not None and number not in taken:
                    report.used -= 1
                    report.dropped[NOT_DRAWN] = report.dropped.get(NOT_DRAWN, 0) + 1
                elif settings.on_bad_row == "skip" or not (failed or _bad(report)):
                    yield found
                number += 1


def _bad(report: SourceReport) -> int:
    """How many of its rows are left out although the recipe does not say so."""
    return sum(n for reason, n in report.dropped.items() if reason not in CHOSEN) if report.dropped else 0


def refuse_bad(reports: Sequence[SourceReport]) -> None:
    """Raise DataError with the first bad rows when there is any."""
    bad = sum(map(_bad, reports))
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


def _read(item: Input, source: Source, report: SourceReport, settings: Settings, where: Where) -> Iterator[Found]:
    """The usable samples of a source, counted in `report`."""
    seen: dict[str, None] = {}
    make: Callable[[dict[str, Any]], Sample] | None = None
    for record in source.records():
        report.read += 1
        try:
            if isinstance(record.value, BadRow):
                raise record.value
            if not record.value.keys() <= seen.keys():
                seen |= dict.fromkeys(record.value)
            if make is None:
                make = _maker(item, source, record.value, report, settings, where)
            _count_unused(record.value, item, report)
            made = make(record.value)
        except BadRow as bad:
            drop(
                report,
                f"{source.name}{record.number}",
                _with_way_out(bad, record.value, item, report.format),
                record.head,
            )
            if settings.at_once and settings.on_bad_row == "error":
                refuse_bad([report])
        else:
            report.used += 1
            yield Found(item, made, source.name, record.number, record.head, report)
    if report.read == 0:
        raise DataError(f"{source.path}: the file holds no rows")
    if make is not None:
        _require(set(item.columns), seen, item, source, where)


def _count_unused(record: dict[str, Any], item: Input, report: SourceReport) -> None:
    if item.as_it_is and not unused(record, report.format):
        return
    left = _left_over(record, item)
    written = [column for column in left if column in item.wordings]  # there is one of this name, and another is made
    for column in (*unused(left, report.format), *written):
        report.ignored[column] = report.ignored.get(column, 0) + is_filled(left[column])


def _left_over(record: dict[str, Any], item: Input) -> dict[str, Any]:
    """The columns under our names, without those that a wording names."""
    named = {column for wording in item.wordings.values() for column in columns_of(wording)}
    return {name: value for name, value in rename(record, item.columns).items() if name not in named}


def _shaped(record: dict[str, Any], item: Input) -> dict[str, Any]:
    """The record under our names, with the texts that wordings make of it. Raises BadRow."""
    made = {ours: fill(text, record, f"{item.key}.{ours}") for ours, text in item.wordings.items()}
    return {**(_left_over(record, item) if made else rename(record, item.columns)), **made}


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


def _key_of(item: Input, name: str) -> str:
    """The key of an entry that names columns. Validation data have none: they are read as the train entries are."""
    return item.key if item.role == "validation" else f"{item.key}.{name}"


def _because(item: Input, name: str) -> str:
    said = f", which data.train[].{name} names; validation data are read as the train entries are"
    return said if item.role == "validation" else ""


def _require_worded(record: dict[str, Any], item: Input, source: Source, where: Where) -> None:
    """Raise RecipeError for a column in a wording that the first record does not have."""
    for ours, text in item.wordings.items():
        for column in columns_of(text):
            if column not in record:
                close = nearest(column, record)
                hint = f" Did you mean {close[0]}?" if close else ""
                has = f"{source.path} has no column {column}{_because(item, ours)}.{hint} It has {', '.join(record)}"
                refuse(where, _key_of(item, ours), has)


def _require(columns: set[str], seen: Collection[str], item: Input, source: Source, where: Where) -> None:
    """Raise RecipeError for a column of data.train[].columns that is not there."""
    for theirs in item.columns:
        if theirs in columns and theirs not in seen:
            close = nearest(theirs, seen)
            hint = f" Did you mean {close[0]}?" if close else ""
            refuse(
                where,
                _key_of(item, "columns"),
                f"{source.path} has no column {theirs}{_because(item, 'columns')}.{hint} It has {', '.join(seen)}"
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
    _require_worded(first, item, source, where)
    name = _format(item, source, first, settings.kind, where)
    given = source.kind == ".txt" or item.format != "auto" or bool(item.wordings)
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
    writes = settings.template is not None and writes_tools(settings.template)
    if item.tools and (not writes or "tools" not in OPTIONAL.get(name, ())):
        why = f"format {name} has none" if writes else "the chat template writes no tools"
        refuse(where, f"{item.key}.tools", f"{why}: remove the key, or give data.chat_template another")
    reading = Reading(settings.template is not None, item.special_tokens == "tokens", writes, item.tools)
    if item.as_it_is:
        return lambda value: sample(value, name, reading)
    return lambda value: sample(_shaped(value, item), name, reading)


def _format(item: Input, source: Source, first: dict[str, Any], kind: str, where: Where) -> str:
    record = rename(first, item.columns)
    refuse_other_kind(item, source, record, kind, where)
    if item.wordings:
        if "completion" not in ROWS[kind].formats:
            given = next(iter(item.wordings))
            refuse(where, f"{item.key}.{given}", f"is for format completion; the objective takes {ROWS[kind].words}")
        return "completion"
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


def _taken(item: Input, settings: Settings, where: Where, seed: Sequence[int]) -> set[int] | None:
    """Which of its usable samples `limit` takes, as numbers from 0; None for all. To count them, all are read once."""
    if item.limit is None:
        return None
    n = 0
    for source in item.sources:
        report = SourceReport(path=source.path, role=item.role)
        n += sum(1 for _ in _read(item, source, report, settings, where))
    if item.limit >= n:
        return None
    return set(np.random.default_rng(seed).choice(n, size=item.limit, replace=False).tolist())
