"""What a request is about, as one word of ten. Phrasings of validation and test are in no trained row."""

from __future__ import annotations

from functools import partial
from random import Random

from real_benchmark.rows.task import Row, Sets, Task, first_word, split

SETS = ((0, 5), (5, 7), (7, 9))
"""of the nine phrasings of an intent: those of train, validation and test"""
# fmt: off
PHRASES: dict[str, tuple[str, ...]] = {
    "weather": (
        "will it rain in {city} {day}", "how warm is it in {city}", "do I need an umbrella {day}",
        "what does the sky look like in {city}", "is it going to snow {day}", "give me the forecast for {city}",
        "how cold will {day} be", "should I expect sunshine in {city} {day}", "is a storm coming to {city}",
    ),
    "alarm": (
        "wake me at {hour}", "set something to ring at {hour}", "I have to be up by {hour} {day}",
        "make a sound in {n} minutes", "do not let me sleep after {hour}", "get me out of bed at {hour}",
        "ring in {n} minutes", "I must not oversleep {day}, say {hour}", "beep when {n} minutes are over",
    ),
    "music": (
        "play something by {artist}", "put on the new album of {artist}", "I want to hear {artist}",
        "start my dinner playlist", "next song please", "turn up the track by {artist}", "let us listen to {artist}",
        "shuffle everything from {artist}", "some quiet tunes for {day} evening",
    ),
    "travel": (
        "find a train to {city}", "when does the bus leave for {city}", "book a flight to {city} {day}",
        "how do I get to {city}", "which platform for {city}", "I need a ticket to {city}",
        "how long is the drive to {city}", "two seats on the ferry to {city} {day}",
        "what is the fastest way to {city}",
    ),
    "calendar": (
        "what do I have to do {day}", "put lunch with {name} on {day}", "move the meeting with {name} to {hour}",
        "am I free {day} at {hour}", "cancel my appointment with {name}", "when do I see {name} next",
        "add a review with {name} {day}", "push {name} back to {hour}", "is anything planned for {day}",
    ),
    "message": (
        "tell {name} that I am late", "write to {name} about {day}", "send {name} a note", "text {name} that I agree",
        "answer {name} with yes", "let {name} know I will come {day}", "drop {name} a line",
        "reply to {name} that it works", "inform {name} about the change",
    ),
    "shopping": (
        "add {n} eggs to my list", "order more coffee", "buy a present for {name}", "where can I get cheap shoes",
        "put milk in the basket", "we are out of bread", "reorder the soap from last time",
        "find me a jacket under {n} dollars", "get {n} bottles of juice",
    ),
    "cooking": (
        "how do I make pancakes", "what can I cook with {n} potatoes", "how long does rice boil",
        "a soup for {n} people", "which spices go with lamb", "give me a recipe for lentils",
        "at what heat does bread bake", "something vegetarian for {n} guests", "how much salt in the dough",
    ),
    "news": (
        "what happened in {city} today", "read me the headlines", "any updates on the election",
        "who won the match {day}", "what is the story of the day", "tell me what the papers say",
        "latest reports from {city}", "what is going on in the world", "catch me up on politics",
    ),
    "money": (
        "how much is in my account", "transfer {n} dollars to {name}", "did {name} pay me", "show what I spent {day}",
        "pay the rent", "what is my balance", "send {name} the {n} I owe", "has the salary arrived",
        "block my credit card",
    ),
}
CITIES = ("Oslo", "Lisbon", "Dublin", "Vienna", "Toronto", "Nairobi", "Lima", "Osaka", "Athens", "Denver")
DAYS = ("today", "tomorrow", "on Monday", "on Friday", "this weekend")
HOURS = ("six", "7:30", "half past eight", "noon", "quarter to nine")
ARTISTS = ("Mozart", "the Beatles", "Nina Simone", "Miles Davis", "Adele", "Bach")
NAMES = ("Maria", "Tom", "my sister", "the dentist", "Paul", "Anna", "the office")
BEFORE = ("", "", "please ", "hey, ", "could you help: ", "quick one: ")
# fmt: on


def row(first: int, end: int, draw: Random) -> Row:
    """One of the phrasings `first` to before `end` of some intent."""
    label = draw.choice(list(PHRASES))
    slots = {
        "city": draw.choice(CITIES),
        "day": draw.choice(DAYS),
        "hour": draw.choice(HOURS),
        "artist": draw.choice(ARTISTS),
        "name": draw.choice(NAMES),
        "n": draw.randint(3, 30),
    }
    said = draw.choice(BEFORE) + draw.choice(PHRASES[label][first:end]).format(**slots)
    return {"prompt": f"Request: {said}\nTopic:", "completion": f" {label}"}


def sets() -> Sets:
    return split("intents", *(partial(row, *between) for between in SETS))


TASK = Task("intents", "what a request is about, one word of ten", "accuracy", sets, first_word, most=4, tokens=15)


def mislabelled(rows: list[Row], share: float, seed: int) -> list[Row]:
    """A share of the rows, drawn, with another label than theirs."""
    draw = Random(f"labels {seed}")
    wrong = set(draw.sample(range(len(rows)), round(share * len(rows))))

    def other(row: Row) -> Row:
        labels = [f" {label}" for label in PHRASES if f" {label}" != row["completion"]]
        return {**row, "completion": draw.choice(labels)}

    return [other(row) if at in wrong else row for at, row in enumerate(rows)]
