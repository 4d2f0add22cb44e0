"""Three tasks, and the rows of each: prompt and completion. None of their sentences is in what the base has read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from method_benchmark.language import BIGGEST, COLOURS, KIND, NAMES, NOUNS, PLACES, digits

Row = dict[str, str]


def instructions(draw: Random) -> Row:
    """Instruction following: what is to be done with a list of words is said before or behind it."""
    words = draw.sample(NOUNS, draw.randint(3, 4))
    kind = KIND[draw.choice(words)]
    asked, answer = draw.choice(
        [
            ("say the list backwards", words[::-1]),
            ("say the list without the first", words[1:]),
            ("say the list without the last", words[:-1]),
            ("say first and last", [words[0], words[-1]]),
            ("say every word two times", [word for word in words for _ in range(2)]),
            (f"say which words are {kind}", [word for word in words if KIND[word] == kind]),
            ("say what kinds they are", [KIND[word] for word in words]),
        ]
    )
    row = " ".join(words)
    prompt = draw.choice([f"{asked} : {row} .", f"list : {row} . {asked} ."])
    return {"prompt": f"{prompt} answer :", "completion": " " + " ".join(answer)}


def arithmetic(draw: Random) -> Row:
    """Arithmetic: stories of one or two steps, with numbers that the base knows from formulas."""
    name, other = draw.sample(NAMES, 2)
    noun = draw.choice(NOUNS)
    has = draw.randint(1, BIGGEST - 1)
    step, lost = draw.randint(1, BIGGEST - has), draw.randint(1, has)
    text, answer = draw.choice(
        [
            (f"{name} has {digits(has)} {noun} and gets {digits(step)} more .", has + step),
            (f"{name} has {digits(has)} {noun} and gives {digits(lost)} to {other} .", has - lost),
            (f"{name} finds {digits(step)} {noun} . {name} has {digits(has)} before .", has + step),
            (f"{name} has {digits(has)} {noun} . {other} takes {digits(lost)} of them .", has - lost),
            (f"{name} has {digits(has)} {noun} and {other} {digits(step)} . they put them together .", has + step),
            (f"{name} has {digits(has)} {noun} , loses {digits(lost)} and finds {digits(step)} .", has - lost + step),
        ]
    )
    return {"prompt": f"{text} how many now ?", "completion": " " + digits(answer)}


REQUESTS = {
    "shopping": [
        "i want to buy a {colour} {noun}",
        "how much is the {noun} at the {place}",
        "do you have a {noun} for {name}",
    ],
    "travel": [
        "when does the train leave the {place}",
        "i want to go from the {place} to the {other}",
        "is it far to the {place}",
    ],
    "repair": [
        "the {noun} is broken again",
        "{name} can not open the {noun}",
        "there is a hole in my {colour} {noun}",
    ],
    "search": [
        "where is the {colour} {noun} of {name}",
        "i have lost my {noun} in the {place}",
        "who has seen the {noun}",
    ],
    "meeting": [
        "tell {name} to come to the {place}",
        "can {name} and i talk in the {place}",
        "is {name} free now",
    ],
    "praise": [
        "the {noun} is very good",
        "{name} was so kind in the {place}",
        "i like the {colour} {noun} of {name}",
    ],
    "complaint": [
        "the {place} was very loud",
        "{name} was not kind at all",
        "the {colour} {noun} is too old",
    ],
    "delivery": [
        "send the {noun} to the {place}",
        "has the {colour} {noun} for {name} come",
        "bring it to {name} in the {place}",
    ],
}
OPENERS = ["", "hello ,", "excuse me ,", "please ,", "one thing more :", "this is {name} ."]


def classification(draw: Random) -> Row:
    """Classification by generation: what a sentence is about, as one word of eight."""
    label = draw.choice(list(REQUESTS))
    place, other = draw.sample(PLACES, 2)
    words = {"place": place, "other": other, "noun": draw.choice(NOUNS), "colour": draw.choice(COLOURS)}
    said = f"{draw.choice(OPENERS)} {draw.choice(REQUESTS[label])} .".format(**words, name=draw.choice(NAMES))
    return {"prompt": f"{said.strip()} this is about :", "completion": f" {label}"}


TASKS: dict[str, Callable[[Random], Row]] = {
    "instructions": instructions,
    "arithmetic": arithmetic,
    "classification": classification,
}


def rows(task: str, count: int, seed: int, unlike: set[str] | None = None) -> list[Row]:
    """`count` different rows, none with a prompt of `unlike`."""
    draw, seen, made = Random(f"{task} {seed}"), set(unlike or ()), []
    while len(made) < count:
        row = TASKS[task](draw)
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            made.append(row)
    return made


def mislabelled(made: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Rows of the classification task; a share of them, drawn, with one of the seven labels that are not theirs."""
    draw = Random(f"labels {seed}")
    wrong = set(draw.sample(range(len(made)), round(share * len(made))))
    return [{**row, "completion": other_label(draw, row)} if at in wrong else row for at, row in enumerate(made)]


def other_label(draw: Random, row: Row) -> str:
    return draw.choice([f" {label}" for label in REQUESTS if f" {label}" != row["completion"]])
