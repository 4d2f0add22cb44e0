"""Rows to train and to test on: spoken household commands, each answered by one line of JSON.

    could you dim the lamp in the study to forty percent at half past nine
    {"device": "lamp", "room": "study", "do": "set", "value": 40, "at": "9:30"}

The keys stand in one order; `value`, `at` and `minutes` only when the command names them. One in five
combinations of device, action and room is held out: test.jsonl is made of these, train.jsonl of the others.
The same arguments give the same bytes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

SYSTEM = "Answer in JSON."
# fmt: off
ROOMS = (
    "kitchen", "bedroom", "bathroom", "living room", "hallway",
    "study", "garage", "nursery", "attic", "cellar",
)
# fmt: on

# {device: {action: phrasings}}, where {x} is the device with its room and {n} a number.
SWITCH: dict[str, tuple[str, ...]] = {
    "on": ("turn on {x}", "turn {x} on", "switch on {x}", "switch {x} on", "start {x}"),
    "off": ("turn off {x}", "turn {x} off", "switch off {x}", "switch {x} off", "stop {x}"),
}
MOVE: dict[str, tuple[str, ...]] = {
    "open": ("open {x}", "open up {x}", "get {x} open"),
    "close": ("close {x}", "shut {x}", "get {x} closed"),
}
DEVICES: dict[str, dict[str, tuple[str, ...]]] = {
    "lamp": {
        **SWITCH,
        "set": ("dim {x} to {n} percent", "set {x} to {n} percent", "bring {x} to {n} percent"),
    },
    "heater": {
        **SWITCH,
        "set": ("set {x} to {n} degrees", "heat {x} to {n} degrees", "turn {x} to {n} degrees"),
    },
    "radio": {**SWITCH, "set": ("set {x} to volume {n}", "turn {x} to volume {n}", "put {x} at volume {n}")},
    "fan": SWITCH,
    "camera": SWITCH,
    "window": MOVE,
    "door": {**MOVE, "lock": ("lock {x}", "lock up {x}"), "unlock": ("unlock {x}", "unbolt {x}")},
    "blinds": {**MOVE, "open": (*MOVE["open"], "raise {x}"), "close": (*MOVE["close"], "lower {x}")},
}
VALUES = {"lamp": range(10, 100, 10), "heater": range(15, 27), "radio": range(1, 13)}
BEFORE = ("", "", "please ", "could you ", "can you ", "would you please ", "I want you to ", "hey, ", "now ")
AFTER = ("", "", "", " please", " thanks", " for me")

# fmt: off
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on


class Combination(NamedTuple):
    """What is held out or trained as a whole."""

    device: str
    action: str
    room: str


def combinations() -> list[Combination]:
    return [Combination(d, action, room) for d in DEVICES for action in DEVICES[d] for room in ROOMS]


def split(seed: int) -> tuple[list[Combination], list[Combination]]:
    """(trained, held out): of each action of each device two rooms of ten are held out."""
    draw = random.Random(f"split {seed}")
    held = {Combination(d, a, room) for d in DEVICES for a in DEVICES[d] for room in draw.sample(ROOMS, 2)}
    return [c for c in combinations() if c not in held], [c for c in combinations() if c in held]


def words(n: int) -> str:
    """42 -> forty-two"""
    if n < 20:
        return ONES[n]
    return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")


def number(n: int, draw: random.Random) -> str:
    return draw.choice((str(n), words(n)))


def moment(draw: random.Random) -> tuple[str, dict[str, str | int]]:
    """A time as people say it, and what it means; often none."""
    kind = draw.choice(("none", "none", "clock", "delay"))
    if kind == "delay":
        minutes = draw.choice((2, 5, 10, 15, 20, 30, 40, 45))
        return f" in {number(minutes, draw)} minutes", {"minutes": minutes}
    if kind == "clock":
        hour = draw.randint(1, 12)
        minute, says = draw.choice(
            (
                ("00", (f"{words(hour)} o'clock", f"{hour} o'clock", f"{hour}:00")),
                ("15", (f"quarter past {words(hour)}", f"{hour}:15")),
                ("30", (f"half past {words(hour)}", f"{hour}:30")),
            )
        )
        return f" at {draw.choice(says)}", {"at": f"{hour}:{minute}"}
    return "", {}


def command(what: Combination, draw: random.Random) -> tuple[str, str]:
    """One way to say `what`, with a value and a time drawn freely, and the JSON that it means."""
    answer: dict[str, str | int] = {"device": what.device, "room": what.room, "do": what.action}
    thing = draw.choice((f"the {what.room} {what.device}", f"the {what.device} in the {what.room}"))
    n = ""
    if what.action == "set":
        answer["value"] = draw.choice(VALUES[what.device])
        n = number(int(answer["value"]), draw)
    says, means = moment(draw)
    phrase = draw.choice(DEVICES[what.device][what.action]).format(x=thing, n=n)
    text = draw.choice(BEFORE) + phrase + says + draw.choice(AFTER)
    return text, json.dumps(answer | means)


def rows(among: list[Combination], count: int, draw: random.Random) -> list[dict[str, object]]:
    """`count` different commands, every combination about equally often."""
    found: dict[str, str] = {}
    while len(found) < count:
        for what in draw.sample(among, min(len(among), count - len(found))):
            text, answer = command(what, draw)
            found.setdefault(text, answer)
    return [
        {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": text},
                {"role": "assistant", "content": answer},
            ]
        }
        for text, answer in found.items()
    ]


def write(folder: Path, train: int = 672, test: int = 200, seed: int = 0) -> None:
    """train.jsonl and test.jsonl in `folder`, with so many rows."""
    trained, held = split(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, among, count in (("train", trained, train), ("test", held, test)):
        lines = [json.dumps(row) for row in rows(among, count, random.Random(f"{name} {seed}"))]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
