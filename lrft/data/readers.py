"""From files, folders and hub data sets to raw records, each with its place.

A record is one JSON object: a line of .jsonl, an element of the array of a .json file, a row of .csv, .parquet or
.arrow. A .txt file is one record with the column `text`. Files of text may be compressed: .jsonl.gz, .csv.zst.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrft.data.files import COMPRESSED, DataFile, fetch, is_remote, kind_of_file
from lrft.data.hub import hub_source
from lrft.data.records import BadRow, Record, Source, as_object, head, kind_of, of_table
from lrft.data.saved import SPLITS, STATE, is_saved, is_saved_splits, saved_source
from lrft.errors import DataError, nearest

_HELD_OUT = re.compile(r"(test|valid|validation|dev|eval)(?![a-z])", re.IGNORECASE)


def find(path: str, split: str = "train") -> list[Source]:
    """The sources of one path of the recipe: a file, the files of a folder (sorted), hub:OWNER/NAME, a folder that
    `save_to_disk` of the datasets library made, or the address of a file.

    split: of what has splits. Raises DataError when there is none, MissingError for an address without its driver.
    """
    if path.startswith("hub:"):
        return [hub_source(path, split)]
    if is_remote(path):
        _require_known(path)
        return [_file(fetch(path))]
    place = Path(path).expanduser()
    if is_saved(place):
        return [saved_source(place, split)]
    if place.is_dir():
        return [_file(DataFile(str(file), file)) for file in _folder(place)]
    if not place.is_file():
        close = nearest(place.name, (f.name for f in place.parent.iterdir())) if place.parent.is_dir() else []
        hint = f"Close: {place.parent / close[0]}" if close else "For a hub dataset write hub:OWNER/NAME."
        raise DataError(f"{path}: no such file or folder", hint)
    _require_known(path)
    return [_file(DataFile(str(place), place))]


def has_splits(path: str) -> bool:
    """Whether a path of the recipe names data with several splits."""
    return path.startswith("hub:") or is_saved_splits(Path(path).expanduser())


def _require_known(name: str) -> None:
    """Raise DataError for a file of a kind that has no reader."""
    if not _is_known(name):
        ending = "".join(Path(name).suffixes[-2:]) if kind_of_file(name) in READERS else Path(name).suffix
        raise DataError(f"{name}: {ending or 'a file without suffix'} is not a supported data file", _KINDS)


def _is_known(name: str) -> bool:
    kind = kind_of_file(name)
    return kind in READERS and (kind in _TEXT or DataFile(name, Path(name)).compression is None)


def _folder(folder: Path) -> list[Path]:
    files = sorted(
        f
        for f in folder.rglob("*")
        if f.is_file() and _is_known(f.name) and not any(part.startswith(".") for part in f.relative_to(folder).parts)
    )
    if not files:
        raise DataError(f"{folder}: the folder holds no data file", _KINDS)
    if saved := next((f.parent for f in files if f.name in (STATE, SPLITS)), None):
        raise DataError(f"{folder}: {saved} is a data set of save_to_disk", f"Use its path: {saved}")
    held_out = [f for f in files if _HELD_OUT.match(f.stem)]
    others = [f for f in files if f not in held_out]
    if held_out and others:
        raise DataError(
            f"{folder}: the folder holds both {others[0].name} and {held_out[0].name}; "
            "rows meant for testing would be trained on",
            "List the files to use one by one.",
        )
    return files


def _file(file: DataFile) -> Source:
    kind, path = kind_of_file(file.name), file.path
    seen: list[tuple[int, int]] = []

    def stamp() -> tuple[int, int]:
        status = path.stat()
        return status.st_size, status.st_mtime_ns

    def digest() -> str:
        with _plainly(file):
            seen[:] = [stamp()]
            with path.open("rb") as raw:
                return hashlib.file_digest(raw, "sha256").hexdigest()

    def records() -> Iterator[Record]:
        with _plainly(file):
            yield from READERS[kind](file)
            if seen and seen[0] != stamp():
                raise DataError(f"{file}: the file changed while it was read", "Run the same command again.")

    return Source(f"{file}{':' if kind in _BY_LINE else '#'}", kind, digest, records)


@contextmanager
def _plainly(file: DataFile) -> Iterator[None]:
    """An OSError as a DataError that names the file."""
    try:
        yield
    except OSError as error:
        if file.compression is None or error.strerror:
            raise DataError(f"{file}: {error.strerror or error}") from error
        hint = "Fetch or compress it again. A file that is not compressed has a name without the last ending."
        raise DataError(f"{file}: not readable as {file.compression}: {error}", hint) from error


# --- kinds of files --------------------------------------------------------------------------------


def _jsonl(path: DataFile) -> Iterator[Record]:
    with path.open() as file:
        # A binary file is split at \n only; splitlines would also split at U+2028 inside a string.
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if number == 1:
                _refuse_utf16(path, line)
            if line.strip():
                yield Record(number, _parse_line(line), head(line))


def _parse_line(line: bytes) -> dict[str, Any] | BadRow:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return BadRow("invalid UTF-8", f"byte {error.start + 1} of the line is not UTF-8")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except BadRow as bad:
        return bad
    except RecursionError:
        return BadRow("bad JSON", "nested too deeply")
    except ValueError as error:
        hint = " (a JSON array over several lines? then name the file .json)" if text.strip() in "[{" else ""
        return BadRow("bad JSON", f"not JSON: {error}{hint}")
    return as_object(value)


def _refuse_constant(name: str) -> Any:
    raise BadRow("NaN or Infinity", f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow("bad JSON", f"the key '{twice}' appears twice")
    return found


def _json(path: DataFile) -> Iterator[Record]:
    text = _text(path)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except BadRow as bad:
        raise DataError(f"{path}: {bad.detail}") from bad
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply") from error
    except ValueError as error:
        lines = "Extra data" in str(error) and text.lstrip().startswith("{")
        hint = "One object per line? Then name the file .jsonl." if lines else None
        raise DataError(f"{path}: not JSON: {error}", hint) from error
    if isinstance(value, dict):
        arrays = [v for v in value.values() if isinstance(v, list)]
        if len(arrays) != 1:
            raise DataError(
                f"{path}: an object with {len(arrays)} arrays; expected an array of objects, or an object "
                "with one array"
            )
        value = arrays[0]
    if not isinstance(value, list):
        raise DataError(f"{path}: expected an array of objects, got {kind_of(value)}")
    for number, item in enumerate(value, 1):
        yield Record(number, as_object(item), head(item))


def _csv(path: DataFile) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)
    # Bytes that are not UTF-8 travel as lone surrogates, so that only their own row is bad.
    with path.open() as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as text:
        # strict: otherwise an unclosed quote swallows the rest of the file as one field.
        lines = csv.reader(text, strict=True)
        try:
            header = next(lines, None)
            if not header:
                return
            if repeated := [name for name in header if header.count(name) > 1]:
                raise DataError(f"{path}:1: the column '{repeated[0]}' appears twice in the header")
            start = lines.line_num + 1
            for fields in lines:
                if fields:
                    yield Record(start, _csv_row(header, fields), head(",".join(fields)))
                start = lines.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{lines.line_num}: {error}", "Look for an unclosed or stray quote.") from error


def _csv_row(header: list[str], fields: list[str]) -> dict[str, Any] | BadRow:
    if len(fields) != len(header):
        return BadRow("ragged row", f"{len(fields)} fields, the header has {len(header)}")
    if any("\udc80" <= c <= "\udcff" for field in fields if not field.isascii() for c in field):
        return BadRow("invalid UTF-8", "the row contains bytes that are not UTF-8")
    return dict(zip(header, fields, strict=True))


def _parquet(path: DataFile) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path.path) as table:
            yield from _of_batches(table.iter_batches())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as parquet: {error}") from error


def _arrow(path: DataFile) -> Iterator[Record]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path.path)) as source:
            start = source.read(6)
            source.seek(0)
            # A file of batches begins with this; else it is a stream of them, as the datasets library writes.
            if start == b"ARROW1":
                table = pa.ipc.open_file(source)
                yield from _of_batches(table.get_batch(k) for k in range(table.num_record_batches))
            else:
                yield from _of_batches(pa.ipc.open_stream(source))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as arrow: {error}") from error


def _of_batches(batches: Iterable[Any]) -> Iterator[Record]:
    """The rows of pyarrow's record batches."""
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield Record(number, of_table(value), head(value))


def _txt(path: DataFile) -> Iterator[Record]:
    text = _text(path)
    yield Record(1, {"text": text}, head(text))


def _text(path: DataFile) -> str:
    raw = path.read()
    _refuse_utf16(path, raw)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: invalid UTF-8 at byte {error.start + 1} of the file") from error


def _refuse_utf16(path: DataFile, raw: bytes) -> None:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: the file is UTF-16", "Save it as UTF-8.")


READERS: dict[str, Callable[[DataFile], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _txt,
}
_TEXT = (".jsonl", ".json", ".csv", ".txt")
_BY_LINE = (".jsonl", ".csv", ".txt")
_KINDS = (
    f"Data files end in {', '.join(READERS)}; {', '.join(_TEXT)} may be compressed, with {' or '.join(COMPRESSED)} "
    "at the end."
)
