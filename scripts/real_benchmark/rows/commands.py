"""Spoken household commands, each answered by one line of JSON: the quickstart's, as prompt and completion.

Combinations of device, action and room that are tested are not trained; those of validation and test are different.
"""

from __future__ import annotations

from functools import partial
from random import Random

from lrft.quickstart.commands import Combination, command
from lrft.quickstart.commands import split as held_out
from real_benchmark.rows.task import Row, Sets, Task, exact, split

SEED = 1


def row(among: list[Combination], draw: Random) -> Row:
    said, answer = command(draw.choice(among), draw)
    return {"prompt": f"{said}\n", "completion": answer}


def sets() -> Sets:
    trained, held = held_out(SEED)
    Random(SEED).shuffle(held)
    half = len(held) // 2
    return split("commands", *(partial(row, among) for among in (trained, held[:half], held[half:])))


TASK = Task("commands", "a spoken command becomes one line of JSON", "exact match", sets, exact, most=44, tokens=38)
