"""Facts about a place to eat, told in one sentence. Every value stands in it word for word, so that it can be counted.

Names of validation and test are in no trained row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from random import Random

from real_benchmark.rows.task import Row, Sets, Task, mean, split

# fmt: off
NAMES = (
    "The Blue Owl", "Mulberry House", "The Old Mill", "Corner Table", "Red Lantern", "The Anchor", "Green Fork",
    "Harvest Moon", "The Copper Pot", "Silver Spoon", "The Lighthouse", "Olive Tree", "The Fox", "Juniper",
    "Two Rivers", "The Walrus", "Saffron", "Bread and Salt", "The Station", "Willow Court", "The Pelican",
    "Maple Garden", "The Bell", "Night Market",
)
FOODS = ("Thai", "Italian", "French", "Indian", "Chinese", "Greek", "English", "Japanese", "Mexican", "Turkish")
# fmt: on
KINDS = ("restaurant", "cafe", "pub", "bistro")
PRICES = ("cheap", "moderately priced", "expensive")
AREAS = ("riverside", "city centre", "old town", "harbour")
RATINGS = ("low", "average", "high")
FAMILIES = ("family friendly", "not family friendly")
SHAPES = (
    ("{name} is a {price} {kind} with {food} food in the {area}", ("kind", "food", "price", "area")),
    ("{name} is a {kind} in the {area} that serves {food} food", ("kind", "food", "area")),
    ("In the {area} there is a {family} {kind} called {name}", ("kind", "area", "family")),
    ("{name} is a {family} {kind} for {price} {food} food", ("kind", "food", "price", "family")),
    ("The {food} {kind} {name} in the {area} has a {rating} rating", ("kind", "food", "area", "rating")),
    ("{name} is a {price} {kind} with a {rating} rating", ("kind", "price", "rating")),
)


def row(names: Sequence[str], draw: Random) -> Row:
    values = {
        "name": draw.choice(names),
        "kind": draw.choice(KINDS),
        "food": draw.choice(FOODS),
        "price": draw.choice(PRICES),
        "area": draw.choice(AREAS),
        "rating": draw.choice(RATINGS),
        "family": draw.choice(FAMILIES),
    }
    shape, keys = draw.choice(SHAPES)
    facts = ", ".join(f"{key}: {values[key]}" for key in ("name", *keys))
    said = re.sub(r"\ba (?=[aeiou])", "an ", shape.format(**values), flags=re.IGNORECASE)
    return {"prompt": f"{facts}\n", "completion": f"{said}."}


def coverage(answers: Sequence[tuple[str, str, str]]) -> float:
    """Share of the values of a prompt that stand in its answer; 0 where an answer repeats the form of the prompt."""

    def of_one(prompt: str, answer: str) -> float:
        values = [value.strip() for value in re.findall(r"\w+: ([^,\n]+)", prompt)]
        if re.search(r"\w+: ", answer):
            return 0.0
        return mean([float(value.lower() in answer.lower()) for value in values])

    return mean([of_one(prompt, answer) for prompt, _, answer in answers])


def sets() -> Sets:
    return split("sentences", *(partial(row, names) for names in (NAMES[:16], NAMES[16:20], NAMES[20:])))


TASK = Task(
    "sentences", "facts about a place to eat become one sentence", "slots told", sets, coverage, most=40, tokens=37
)
