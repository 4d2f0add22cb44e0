"""Grade-school problems in one or two steps, answered by the calculation. The last number is what counts."""

from __future__ import annotations

from random import Random

from real_benchmark.rows.task import Row, Sets, Task, last_number, split

NAMES = ("Ann", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kate", "Luis")
THINGS = ("apples", "books", "stickers", "marbles", "pencils", "coins", "shells", "stamps", "cards", "eggs")


def row(draw: Random) -> Row:
    name, other = draw.sample(NAMES, 2)
    thing = draw.choice(THINGS)
    has, step, bags, each = draw.randint(11, 60), draw.randint(2, 40), draw.randint(2, 6), draw.randint(2, 9)
    lost, left = draw.randint(2, has - 1), bags * each
    text, shown, result = draw.choice(
        [
            (f"{name} has {has} {thing} and buys {step} more.", f"{has} + {step}", has + step),
            (f"{name} has {has} {thing} and gives {lost} to {other}.", f"{has} - {lost}", has - lost),
            (f"{name} fills {bags} bags with {each} {thing} each.", f"{bags} * {each}", left),
            (
                f"{name} has {has} {thing}, loses {lost} and finds {step}.",
                f"{has} - {lost} + {step}",
                has - lost + step,
            ),
            (
                f"{name} buys {bags} boxes of {each} {thing} and already had {step}.",
                f"{bags} * {each} + {step}",
                left + step,
            ),
            (f"{other} has {has} {thing}. {name} has {step} more than {other}.", f"{has} + {step}", has + step),
        ]
    )
    asked = f"How many {thing} does {name} have now?"
    return {"prompt": f"{text} {asked}\n", "completion": f"{shown} = {result}"}


def sets() -> Sets:
    return split("sums", row, row, row)


TASK = Task(
    "sums", "a word problem, answered by its calculation", "right numbers", sets, last_number, most=20, tokens=36
)
