"""Writes train.jsonl and test.jsonl: messages of a shop's customers, each with what it is about.

    python recipes/classification/messages.py FOLDER [--train 480] [--test 160] [--seed 0]

    {"text": "hi, the kettle arrived with a crack in it, order 4711", "label": "damaged"}

Every third phrasing of a label is held out: test.jsonl is made of these, train.jsonl of the others, so that what is
measured are ways of saying it that no row to train on has. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

THINGS = ("kettle", "lamp", "jacket", "backpack", "headphones", "desk", "blender", "tent", "keyboard", "mirror")
DAYS = ("Monday", "Tuesday", "last week", "yesterday", "two weeks ago", "Friday")
BEFORE = ("", "", "hi, ", "hello, ", "good morning, ", "dear team, ")
AFTER = ("", "", ", thanks", ", order {n}", ", please help", ", my order number is {n}")

# {label: phrasings}, every third of them for the test. {x} is what was bought, {d} a day.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "delivery": (
        "where is my {x}, I ordered it {d}",
        "my parcel has not turned up and I bought it {d}",
        "when will the {x} be delivered",
        "the tracking page has not moved since {d}",
        "I am still waiting for the {x} that you shipped {d}",
        "any news on when the courier brings my {x}",
    ),
    "cancel": (
        "please cancel my order of the {x}",
        "I no longer want the {x}, stop the order before it ships",
        "I would like to cancel what I ordered {d}",
        "can you call off my purchase of the {x}",
        "cancel the {x}, I ordered it by mistake",
        "I clicked buy twice, drop one {x} from the order",
    ),
    "return": (
        "how do I send the {x} back, it does not fit",
        "I changed my mind about the {x} and want to give it back",
        "I want to return the {x} that came {d}",
        "which label do I print so that the {x} can go back to you",
        "what is the way to return the {x}, it is not what I expected",
        "the {x} does not suit me, where do I ship it to hand it in",
    ),
    "refund": (
        "I returned the {x} {d} and still have no refund",
        "when do I get my money back for the {x}",
        "the refund for the {x} is not on my card",
        "you have had the {x} back since {d} but nothing was paid to me",
        "please pay back what I paid for the {x}",
        "my bank shows no repayment for the {x} yet",
    ),
    "damaged": (
        "the {x} arrived broken",
        "there is a crack in the {x} that came {d}",
        "the {x} is damaged and does not work",
        "I unpacked the {x} and a part of it is smashed",
        "my new {x} stopped working after a day, it is defective",
        "the {x} was faulty out of the box",
    ),
    "invoice": (
        "I need an invoice for the {x}",
        "my accountant asks for the bill of the {x} that I bought {d}",
        "please send me the invoice of my order from {d}",
        "where do I download a receipt with VAT for the {x}",
        "the invoice for the {x} has the wrong company name",
        "could you mail me a proof of purchase for the {x}",
    ),
    "address": (
        "I need to change the delivery address of my order",
        "we have moved, the {x} must go to another street",
        "please send the {x} to my new address",
        "I gave the wrong house number when I bought the {x}",
        "the address on my order from {d} is wrong, correct it",
        "can the {x} be sent to my office instead of my home",
    ),
    "discount": (
        "my discount code does not work for the {x}",
        "the voucher that I got {d} is refused at the till",
        "is there a discount on the {x}",
        "the {x} was cheaper {d}, do you match that price",
        "the promo code was not taken off the price of the {x}",
        "do students get a percentage off the {x}",
    ),
}


def phrasings(label: str, held_out: bool) -> tuple[str, ...]:
    return tuple(text for k, text in enumerate(PHRASINGS[label]) if (k % 3 == 2) == held_out)


def messages(n: int, seed: int, held_out: bool) -> list[dict[str, str]]:
    """n rows, the labels in turn, in an order that is mixed."""
    chosen = random.Random(f"{seed} {held_out}")
    rows = []
    for k in range(n):
        label = list(PHRASINGS)[k % len(PHRASINGS)]
        words = {"x": chosen.choice(THINGS), "d": chosen.choice(DAYS), "n": chosen.randint(1000, 9999)}
        text = chosen.choice(BEFORE) + chosen.choice(phrasings(label, held_out)) + chosen.choice(AFTER)
        rows.append({"text": text.format(**words), "label": label})
    chosen.shuffle(rows)
    return rows


def write(folder: Path, *, train: int, test: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, n, held_out in (("train", train, False), ("test", test, True)):
        lines = "".join(json.dumps(row) + "\n" for row in messages(n, seed, held_out))
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Messages of a shop's customers, with what they are about.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=480)
    parser.add_argument("--test", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.folder, train=given.train, test=given.test, seed=given.seed)


if __name__ == "__main__":
    main()
