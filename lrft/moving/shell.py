"""The arguments of the longest command in a shell script. Nothing is executed."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrft.errors import UsageError
from lrft.recipe.yaml_scalars import resolve

_DEVICES = ("NPROC_PER_NODE", "nproc_per_node", "num_processes", "nproc-per-node")
_NUMBER = re.compile(r"^\s*(?:export\s+)?(\w+)=(\d+)\s*$", re.M)
_SUM = re.compile(r"\$\((?:expr|\()\s*(\d+)\s*([*/+-])\s*(\d+)\s*\)?\)")
_SETTING = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.S)
DEVICES = "devices"
"""the key under which the number of processes that a script starts is given"""


@dataclass(frozen=True)
class Line:
    """`keys`: the arguments --name value. `commands`: every word before the first of them, without its folder."""

    keys: dict[str, Any]
    commands: tuple[str, ...]


def longest(text: str, path: Path) -> Line:
    """The command of the script with the most arguments. Raises UsageError when no command has any."""
    variables: dict[str, str] = {}
    found = Line({}, ())
    text = _summed(text)
    for words in _commands(text, path):
        words = [_filled(word, variables) for word in words]
        while words and (setting := _SETTING.fullmatch(words[0])):
            variables[setting[1]] = setting[2]
            words = words[1:]
        line = _line(words)
        if len(line.keys) > len(found.keys):
            found = line
    if not found.keys:
        raise UsageError(f"{path} holds no command with arguments such as --learning_rate 1e-4")
    count = next((variables[name] for name in _DEVICES if variables.get(name, "").isdigit()), None)
    return Line({DEVICES: int(count), **found.keys}, found.commands) if count else found


def _summed(text: str) -> str:
    """`text` with $(expr 16 / $n) and $((16 / n)) done, where n is set to a whole number in it."""
    numbers = dict(_NUMBER.findall(text))

    def filled(match: re.Match[str]) -> str:
        return re.sub(r"\$?\{?\b([A-Za-z_]\w*)\b\}?", lambda name: numbers.get(name[1], name[0]), match[0])

    return _SUM.sub(_sum, re.sub(r"\$\((?:expr|\()[^()]*\)", filled, text))


def _commands(text: str, path: Path) -> list[list[str]]:
    """The words of each command, with lines that end in a backslash joined."""
    joined = re.sub(r"\\[ \t]*\n", " ", re.sub(r"^\s*#.*$", "", text, flags=re.M))
    commands = []
    for line in joined.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote is open until a later line
            words = line.split()
        if words:
            commands.append(words)
    return commands


def _filled(word: str, variables: dict[str, str]) -> str:
    """`word` with the script's own variables, and sums of whole numbers done."""

    def value(match: re.Match[str]) -> str:
        return variables.get(match[1] or match[2], match[0])

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, word)


def _sum(match: re.Match[str]) -> str:
    a, sign, b = int(match[1]), match[2], int(match[3])
    if sign == "/" and not b:
        return match[0]
    return str({"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[sign])


def _line(words: list[str]) -> Line:
    first = next((at for at, word in enumerate(words) if re.match(r"--[A-Za-z]", word)), len(words))
    commands = [Path(word).name for word in words[:first]]
    keys: dict[str, Any] = {}
    at = first
    while at < len(words):
        word, at = words[at], at + 1
        if not re.match(r"--[A-Za-z]", word):
            commands.append(Path(word).name)
            continue
        name, equals, given = word[2:].partition("=")
        values = [given] if equals else []
        while at < len(words) and not equals and not re.match(r"--[A-Za-z]", words[at]):
            if values and words[at].endswith(".py"):
                break
            values.append(words[at])
            at += 1
        if name in _DEVICES and values and values[0].isdigit():
            keys[DEVICES] = int(values[0])
            # What follows the launcher's own argument is the program that it starts.
            commands += [Path(value).name for value in values[1:]]
        else:
            keys[name.replace("-", "_")] = _value(values)
    return Line(keys, tuple(commands))


def _value(values: list[str]) -> Any:
    if not values:
        return True
    if len(values) > 1:
        return [_scalar(value) for value in values]
    return _scalar(values[0])


def _scalar(text: str) -> Any:
    if text[:1] in "{[" and text:
        try:
            return json.loads(text)
        except ValueError:
            return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return None if text in ("None", "null") else resolve(text)
    except ValueError:
        return text
