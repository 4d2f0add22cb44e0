"""The learning rate of a recipe that gives none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrft.registry.composition import compose
from lrft.registry.methods import FOLDER, MethodCard, methods
from lrft.registry.presets import PRESETS, Preset

DEFAULT_RATE = 2e-4
"""the learning rate of a method that declares none"""


@dataclass(frozen=True)
class Rate:
    """A default learning rate and its origin."""

    value: float
    owner: str
    """the method, part or preset that declares it"""
    source: str


def default_rate(words: Sequence[str], folder: Path = FOLDER) -> Rate:
    """The learning rate of a recipe that gives none, from the names under adapter.method, presets included.

    The lowest of those that parts and presets declare; where none does, that of the method that builds.
    """
    cards = methods(folder)
    inside = {word: PRESETS[word].names if word in PRESETS else (word,) for word in words}
    builder, *_ = compose(list(dict.fromkeys(name for names in inside.values() for name in names)), folder)
    declared: dict[str, Preset | MethodCard] = {}
    for word, names in inside.items():
        if word in PRESETS and PRESETS[word].learning_rate is not None:
            declared[word] = PRESETS[word]
        else:
            declared |= {name: cards[name] for name in names if not cards[name].builds}
    rates = [Rate(one.learning_rate, word, one.rate_source) for word, one in declared.items() if one.learning_rate]
    method = cards[builder]
    return min(rates, key=lambda rate: rate.value, default=None) or Rate(
        method.learning_rate or DEFAULT_RATE, builder, method.rate_source
    )
