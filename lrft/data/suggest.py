"""Suggest data keys for a file from its first rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lrft.data.config import Where, read_input
from lrft.data.format import best_kind, detect, rename, unclear
from lrft.data.ingest import refuse_other_kind
from lrft.data.readers import find
from lrft.data.records import BadRow, Record
from lrft.errors import DataError
from lrft.registry import DEFAULT_ROWS, ROWS, objectives_for

ROWS_SEEN = 500


@dataclass(frozen=True)
class Suggestion:
    """Keys of the data section that the rows need. The fields are empty where the defaults do.

    format: where the columns fit several. columns: {their name: our name}. too_long: split, for documents.
    objective: the one that takes such rows. problem: why no format fits, and the next step.
    """

    format: str | None = None
    columns: dict[str, str] | None = None
    too_long: str | None = None
    objective: str | None = None
    problem: tuple[str, str] | None = None


def first_columns(path: str) -> list[str] | None:
    """The columns of the first good row of a local file; None where there is none."""
    if path.startswith("hub:"):
        return None
    values = (record.value for source in find(path) for record in source.records())
    return next((list(value) for value in values if not isinstance(value, BadRow)), None)


def suggest(path: str) -> Suggestion | None:
    """What a recipe that trains on `path` needs. None for a data set of the hub, and where there is no such file yet.

    Raises DataError for a file that cannot be read, of another kind, or without any row.
    """
    if path.startswith("hub:") or not Path(path).expanduser().exists():
        return None
    records = list(islice((record for source in find(path) for record in source.records()), ROWS_SEEN))
    good = next((record.value for record in records if not isinstance(record.value, BadRow)), None)
    if good is None:
        return Suggestion(problem=no_row(path, records))
    found, (kind, _) = detect(good), best_kind(good)
    if found is not None and kind == DEFAULT_ROWS:
        return Suggestion(too_long=of_format(found))
    message, keys = unclear(good)
    # A question with an answer may be a pair of texts, and is more often one to be answered.
    meant_otherwise = ROWS[kind].prompted and len(keys.get("columns", {})) > 1
    if detect(good, kind) and not meant_otherwise and (names := objectives_for(kind)):
        if len(names) == 1:
            return Suggestion(objective=names[0])
        text = f"{path}: {ROWS[kind].words}, which the default objective does not take"
        return Suggestion(problem=(text, f"Set training.objective: {' or '.join(names)}."))
    columns = keys.get("columns", {})
    if not keys:
        return Suggestion(problem=(message, "Name a format or rename columns: data.train.0.format, .columns."))
    meant = keys.get("format") or next(iter(columns.values()))
    return Suggestion(keys.get("format"), columns or None, of_format(meant))


def refuse_unfit(section: Any, kind: str, where: Where) -> None:
    """Raise RecipeError where the first row of a local file is of a kind that the objective does not take.

    section: the recipe's data section. What else is wrong with the data is told when they are read whole.
    """
    for k, entry in enumerate(section.train):
        if entry.path.startswith("hub:"):
            continue
        try:
            item = read_input(entry, f"data.train.{k}", "train", where=where)
            for source in item.sources:
                first = next(iter(source.records()), None)
                if first is not None and not isinstance(first.value, BadRow):
                    refuse_other_kind(item, source, rename(first.value, item.columns), kind, where)
        except (DataError, BadRow):
            continue


def of_format(name: str) -> str | None:
    """data.too_long: documents are split where they are longer than a row may be."""
    return "split" if name == "text" else None


def no_row(path: str, records: list[Record]) -> tuple[str, str]:
    bad = records[0].value if records else None
    if isinstance(bad, BadRow):
        return f"{path}: no valid row; the first error: {bad.detail}", "Fix the file."
    return f"{path}: the file holds no rows", "Fill it before training."
