"""Unfamiliar facts to memorise: pairs of random hex digits, shorter than the UUIDs of MoRA's paper (arXiv 2405.12130).

What is asked is how much of the trained rows is remembered, so the test rows are trained in the final runs. The search
of learning rates trains and asks other pairs.
"""

from __future__ import annotations

from random import Random

from real_benchmark.rows.task import Row, Sets, Task, different, digits_right

PAIRS = 40
KEY, VALUE = 6, 12
"""hex digits"""


def row(draw: Random) -> Row:
    key, value = ("".join(draw.choices("0123456789abcdef", k=count)) for count in (KEY, VALUE))
    return {"prompt": f"{key}:", "completion": f" {value}"}


def sets() -> Sets:
    searched = different(row, PAIRS, "facts search")
    asked = different(row, PAIRS, "facts final", searched)
    return Sets(searched, searched, asked, asked)


TASK = Task("facts", "pairs of random hex digits to memorise", "digits right", sets, digits_right, most=20, tokens=19)
