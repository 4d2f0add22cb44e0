"""What a recipe has to say of a file of data, from a look at its first rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lrft.data.format import REQUIRED, detect, renaming, unclear
from lrft.data.readers import find
from lrft.data.records import BadRow, Record

ROWS_SEEN = 500  # a fraction of fewer rows may hold out none of them


@dataclass(frozen=True)
class Suggestion:
    """Keys of the data section that the rows need. The fields are empty where the defaults do.

    format: where the columns fit several. columns: {their name: our name}. validation: a number of rows, or none.
    too_long: split, for documents. problem: why no format fits, and the next step.
    """

    format: str | None = None
    columns: dict[str, str] | None = None
    validation: int | str | None = None
    too_long: str | None = None
    problem: tuple[str, str] | None = None


def suggest(path: str) -> Suggestion | None:
    """What a recipe that trains on `path` needs. None for a data set of the hub, and where there is no such file yet.

    Raises DataError for a file that cannot be read, of another kind, or without any row.
    """
    if path.startswith("hub:") or not Path(path).expanduser().exists():
        return None
    sources = find(path)
    records = list(islice((record for source in sources for record in source.records()), ROWS_SEEN))
    validation = held_out(len(records))
    good = next((record.value for record in records if not isinstance(record.value, BadRow)), None)
    if good is None:
        return Suggestion(validation=validation, problem=no_row(path, records))
    found = detect(good)
    if found is not None:
        return Suggestion(validation=validation, too_long=of_format(found))
    fits = [name for name, wanted in REQUIRED.items() if set(good).issuperset(wanted)]
    if fits:
        return Suggestion(format=fits[0], validation=validation, too_long=of_format(fits[0]))
    renamed = renaming(good)
    if renamed is None:
        return Suggestion(validation=validation, problem=unclear(good))
    return Suggestion(columns=renamed[1], validation=validation, too_long=of_format(renamed[0]))


def held_out(rows: int) -> int | str | None:
    """data.validation for so few rows; None where the default fraction holds out some."""
    if rows >= ROWS_SEEN:
        return None
    return rows // 10 or 1 if rows > 1 else "none"


def of_format(name: str) -> str | None:
    """data.too_long: documents are split where they are longer than a row may be."""
    return "split" if name == "text" else None


def no_row(path: str, records: list[Record]) -> tuple[str, str]:
    bad = records[0].value if records else None
    if isinstance(bad, BadRow):
        return f"{path}: no row can be read; the first: {bad.detail}", "Correct the file."
    return f"{path}: the file holds no rows", "Fill it before training."
