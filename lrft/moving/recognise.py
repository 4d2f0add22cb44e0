"""Which tool a configuration belongs to, by the programs that it starts and by its keys."""

from __future__ import annotations

from types import ModuleType

from lrft.errors import UsageError, nearest
from lrft.foreign.tools import TOOLS
from lrft.moving.configuration import Configuration, walk

_SIGN = 3
"""a key that is a sign of one tool counts as much as three that others have as well"""


def tool_of(configuration: Configuration, wanted: str | None = None) -> ModuleType:
    """The tables of the tool that `wanted` names, or that the configuration is most like. Raises UsageError."""
    if wanted is not None:
        if wanted not in TOOLS:
            close = nearest(wanted.lower(), TOOLS)
            hint = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(TOOLS)}"
            raise UsageError(f"--tool {wanted} is not known", hint)
        return TOOLS[wanted]
    started = [name for name, tool in TOOLS.items() if set(tool.COMMANDS) & set(configuration.commands)]
    among = started or list(TOOLS)
    scores = sorted(((score(configuration, TOOLS[name]), name) for name in among), reverse=True)
    best, name = scores[0]
    if best < 2 * _SIGN or (len(scores) > 1 and scores[1][0] == best):
        raise UsageError(
            f"{configuration.path}: its keys belong to none of the known tools clearly",
            f"Name the tool: --tool {' | '.join(TOOLS)}",
        )
    return TOOLS[name]


def score(configuration: Configuration, tool: ModuleType) -> float:
    """The number of keys that `tool` knows, those that are a sign of it counted three times."""
    known = set(tool.KEYS)
    keys = [key for key, _ in walk(configuration.keys, known)]
    signs = sum(key in tool.SIGNS for key in keys)
    return sum(key in known for key in keys) + (_SIGN - 1) * signs
