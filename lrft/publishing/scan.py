"""A search of everything that leaves for secrets and for paths of this machine."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from lrft.errors import CheckFailed

SHORTEST = 8  # characters of a variable that may be a secret
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|_KEY|APIKEY")
LONG = 16  # characters of a text that is no word of a vocabulary by chance
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model")
HEAD = 2**25  # bytes of a file whose rest is numbers
# The forms of keys of services that people use beside a training: each has a fixed start.
KEYS = re.compile(
    rb"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16}|glpat-[\w-]{20,}|"
    rb"xox[abp]-[\w-]{20,})|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
HOMES = re.compile(rb"(?<![\w.])/(?:home|Users|root|mnt|tmp)/[\w.@+-]+")


def refuse_private(folder: Path, private: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> None:
    """Raises CheckFailed that names each file with a secret or a local path, and what it is, never the secret.

    private: texts that must not be in it, and what they are.
    """
    wanted = {text.encode(): what for text, what in private.items() if len(text) > 1}
    wanted |= {
        value.encode(): f"the value of {name}"
        for name, value in environment.items()
        if SECRET_NAME.search(name.upper()) and len(value) >= SHORTEST
    }
    found = [line for path in sorted(folder.rglob("*")) if path.is_file() for line in looked_at(path, folder, wanted)]
    if found:
        raise CheckFailed("\n".join(["nothing was sent; it holds what should stay here:", *found]))


def looked_at(path: Path, folder: Path, wanted: Mapping[bytes, str]) -> Iterator[str]:
    content, name = text_of(path), path.relative_to(folder)
    words = path.name in VOCABULARIES or path.suffix == ".gguf"
    for text, what in wanted.items():
        if text in content and not (words and len(text) < LONG):
            yield f"{name}: {what}"
    if KEYS.search(content):
        yield f"{name}: the key of a service"
    for place in [] if words else sorted(set(HOMES.findall(content)))[:3]:
        yield f"{name}: the path {place.decode()}"


def text_of(path: Path) -> bytes:
    """All that may be text: of a .safetensors its header, of a .gguf its beginning, of all else the whole."""
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            (size,) = struct.unpack("<Q", file.read(8))
            return file.read(size)
        return file.read(HEAD if path.suffix == ".gguf" else -1)
