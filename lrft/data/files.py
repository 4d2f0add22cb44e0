"""The bytes of a data file: on this machine or fetched from elsewhere, plain or compressed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from lrft.errors import DataError, MissingError

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""What a name ends in, and what pyarrow calls it"""
# {scheme: what pip installs for it}
_DRIVERS = {
    **dict.fromkeys(("http", "https"), "'lrft[https]'"),
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
}


@dataclass(frozen=True)
class DataFile:
    """name: as it was given, a path or an address. path: where the bytes are on this machine."""

    name: str
    path: Path

    def __str__(self) -> str:
        return self.name

    @cached_property
    def compression(self) -> str | None:
        """As pyarrow calls it; None for a plain file."""
        return COMPRESSED.get(PurePosixPath(_bare(self.name)).suffix.lower())

    def open(self) -> IO[bytes]:
        """The content, decompressed. Reading raises OSError where the file is cut or is not compressed as it says."""
        if self.compression is None:
            return self.path.open("rb")
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(self.path), compression=self.compression))

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()


def kind_of_file(name: str) -> str:
    """What a file is by its name, compressed or not: `.jsonl` for rows.jsonl, rows.jsonl.gz and their addresses."""
    path = PurePosixPath(_bare(name))
    if path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return path.suffix.lower()


def is_remote(path: str) -> bool:
    return "://" in path


def _bare(name: str) -> str:
    """An address without its query."""
    if not is_remote(name):
        return name
    parts = urlsplit(name)
    return parts.netloc + parts.path


def fetch(address: str) -> DataFile:
    """The file at an address, through fsspec; its copy on this machine is removed when the process ends.

    Raises MissingError when the driver of the address's scheme is not installed, DataError when there is no such file
    or it cannot be read.
    """
    import fsspec

    scheme = urlsplit(address).scheme
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        hint = f"pip install {_DRIVERS[scheme]}" if scheme in _DRIVERS else f"{error}."
        raise MissingError(f"{address}: the package that reads {scheme}:// is not installed", hint) from error
    except ValueError as error:
        known = "https://, s3://, gs://, and the others of fsspec"
        raise DataError(f"{address}: {scheme}:// is not known. Known: {known}") from error
    # As other programs do, through the proxy that the environment names.
    options: dict[str, Any] = {scheme: {"client_kwargs": {"trust_env": True}}} if scheme in ("http", "https") else {}
    try:
        files, path = fsspec.core.url_to_fs(f"simplecache::{address}", **options)
        with files.open(path) as copy:
            return DataFile(address, Path(copy.name))
    except FileNotFoundError as error:
        raise DataError(f"{address}: no such file, or its server cannot be reached") from error
    except Exception as error:  # every driver has exceptions of its own
        said = (str(error).splitlines() or [""])[0]
        raise DataError(f"{address}: cannot be read: {said or type(error).__name__}") from error
