"""A configuration of another tool as keys and values: from YAML, JSON, a shell script, or a Python file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lrft.errors import UsageError
from lrft.moving import python_calls, shell
from lrft.recipe.yaml_scalars import looks_like_number, resolve

LARGEST = 2_000_000  # bytes; a configuration is some kilobytes


@dataclass(frozen=True)
class Configuration:
    """`keys`: as they stand in the file, maps inside maps. `commands`: names of programs that the file starts."""

    path: Path
    keys: dict[str, Any]
    commands: tuple[str, ...] = field(default=())


def read(path: Path) -> Configuration:
    """The configuration at `path`, by the ending of its name. Raises UsageError."""
    text = _text(path)
    kind = path.suffix.lower()
    if kind == ".py":
        return Configuration(path, python_calls.keys(text, path))
    if kind in (".sh", ".bash", ".txt") or text.startswith("#!"):
        line = shell.longest(text, path)
        return Configuration(path, line.keys, line.commands)
    found = _json(text, path) if kind == ".json" else _yaml(text, path)
    if not isinstance(found, dict) or not found:
        raise UsageError(
            f"{path} holds no keys", "Give a configuration in YAML or JSON, a shell script or a Python file."
        )
    return Configuration(path, {str(key): _numbers(value) for key, value in _filled(found).items()})


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{path} is larger than {LARGEST // 1_000_000} MB: no configuration")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not text") from None


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None


def _yaml(text: str, path: Path) -> Any:
    """As PyYAML reads it, which the tools use: `no` is false, and 1e-4 a text that `_numbers` makes a number."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        where = f"{path}:{place.line + 1}:{place.column + 1}" if place else str(path)
        raise UsageError(f"{where}: {getattr(error, 'problem', None) or 'this is not YAML'}") from None


def _filled(keys: dict[str, Any]) -> dict[str, Any]:
    """References such as ${output_dir} replaced by the texts and numbers of the file's first level."""
    plain = {str(key): value for key, value in keys.items() if isinstance(value, str | int | float)}

    def fill(value: Any, depth: int = 0) -> Any:
        if isinstance(value, str) and "${" in value and depth < 5:
            whole = re.fullmatch(r"\$\{([\w.]+)\}", value)
            if whole and whole[1] in plain:
                return fill(plain[whole[1]], depth + 1)
            filled = re.sub(r"\$\{(\w+)\}", lambda match: str(plain.get(match[1], match[0])), value)
            return filled if filled == value else fill(filled, depth + 1)
        if isinstance(value, dict):
            return {key: fill(item, depth) for key, item in value.items()}
        return [fill(item, depth) for item in value] if isinstance(value, list) else value

    filled: dict[str, Any] = fill(keys)
    return filled


def _numbers(value: Any) -> Any:
    """Texts that are numbers for everybody but YAML 1.1, such as 1e-4, as numbers."""
    if isinstance(value, str) and looks_like_number(value) and not re.match(r"[+-]?0\d", value):
        return resolve(value)
    if isinstance(value, dict):
        return {str(key): _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else value


def walk(keys: dict[str, Any], known: set[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of each key that has a value. A map is opened unless `known` has a line for it as a whole."""
    for name, value in keys.items():
        key = f"{above}{name}"
        opened = key not in known or any(other.startswith(f"{key}.") for other in known)
        if isinstance(value, dict) and value and opened:
            yield from walk(value, known, f"{key}.")
        elif value is not None and value not in ("", {}, []):
            yield key, value
