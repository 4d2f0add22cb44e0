"""Writes train.jsonl and test.jsonl: orders in a café, each with a better and a worse answer.

    python recipes/preferences/orders.py FOLDER [--train 96] [--test 32] [--seed 0]

    prompt     two large teas with milk for table nine please
    chosen     {"item": "tea", "size": "large", "count": 2, "with": "milk", "table": 9}
    rejected   Sure! That is two large teas with milk for table nine. Anything else?

The better answer is one line of JSON whose keys stand in one order; `with` and `table` only when the order names them.
The worse one is prose, the same JSON with talk around it, or short JSON that gets something wrong. One in four
combinations of item and size is held out: test.jsonl is made of these, train.jsonl of the others. The same arguments
give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

SYSTEM = "Answer in JSON."
ITEMS = ("coffee", "tea", "cocoa", "espresso", "juice", "lemonade", "muffin", "brownie")
SIZES = ("small", "medium", "large")
EXTRAS = ("milk", "sugar", "cream", "ice", "honey")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
BEFORE = ("", "", "could I get ", "I would like ", "can we have ", "hi, ", "please bring ")
AFTER = ("", "", " please", " thank you")
TALK = (
    "Sure! {} Anything else?",
    "Thank you for your order. {}",
    "Of course. {} Let me know if you need more.",
    "As an assistant I can help. {}",
)


class Drink(NamedTuple):
    """What is held out or trained as a whole."""

    item: str
    size: str


def split(seed: int) -> tuple[list[Drink], list[Drink]]:
    """(trained, held out): of each size one item in four is held out."""
    draw = random.Random(f"split {seed}")
    held = {Drink(item, size) for size in SIZES for item in draw.sample(ITEMS, len(ITEMS) // 4)}
    every = [Drink(item, size) for item in ITEMS for size in SIZES]
    return [one for one in every if one not in held], [one for one in every if one in held]


def order(what: Drink, draw: random.Random) -> tuple[str, dict[str, Any]]:
    """One way to say an order, and what it means."""
    count, extra, table = draw.randint(1, 6), draw.choice((*EXTRAS, "", "")), draw.choice((*range(1, 13), 0, 0, 0))
    says = f"{NUMBERS[count - 1]} {what.size} {what.item}{'s' if count > 1 else ''}"
    means: dict[str, Any] = {"item": what.item, "size": what.size, "count": count}
    if extra:
        says, means = f"{says} with {extra}", means | {"with": extra}
    if table:
        says, means = f"{says} for table {NUMBERS[table - 1]}", means | {"table": table}
    return says, means


def worse(says: str, means: dict[str, Any], draw: random.Random) -> str:
    """An answer that nobody wants: prose, JSON with talk around it, or wrong JSON."""
    kind = draw.choice(("prose", "talk", "wrong"))
    if kind == "prose":
        return draw.choice(TALK).format(f"That is {says}.")
    if kind == "talk":
        return draw.choice(TALK).format(f"Here is the JSON: {json.dumps(means)}.")
    key = draw.choice([key for key in means if key != "with"])
    others: dict[str, Any] = {"item": ITEMS, "size": SIZES, "count": range(1, 7), "table": range(1, 13)}
    return json.dumps(means | {key: draw.choice([value for value in others[key] if value != means[key]])})


def pairs(among: list[Drink], count: int, draw: random.Random) -> list[dict[str, Any]]:
    """`count` different orders with two answers each, every combination about equally often."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        for what in draw.sample(among, min(len(among), count - len(found))):
            says, means = order(what, draw)
            text = draw.choice(BEFORE) + says + draw.choice(AFTER)
            prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
            answers = {"chosen": json.dumps(means), "rejected": worse(says, means, draw)}
            found.setdefault(text, {"prompt": prompt, **answers})
    return list(found.values())


def write(folder: Path, *, train: int, test: int, seed: int) -> None:
    trained, held = split(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, among, count in (("train", trained, train), ("test", held, test)):
        lines = [json.dumps(row) for row in pairs(among, count, random.Random(f"{name} {seed}"))]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes train.jsonl and test.jsonl of the preference quickstart.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=96, help="pairs in train.jsonl")
    parser.add_argument("--test", type=int, default=32, help="pairs in test.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.folder, train=args.train, test=args.test, seed=args.seed)


if __name__ == "__main__":
    main()
