"""A small closed English: its words, and the sentences that the base has read. All text is drawn from a seed."""

from __future__ import annotations

from random import Random

KINDS = {
    "animal": ["cat", "dog", "horse", "cow", "sheep", "bird", "fish", "mouse"],
    "fruit": ["apple", "pear", "plum", "lemon", "peach", "melon", "cherry", "grape"],
    "tool": ["hammer", "saw", "drill", "knife", "brush", "rope", "nail", "key"],
    "clothing": ["hat", "coat", "shirt", "shoe", "sock", "scarf", "glove", "belt"],
    "furniture": ["chair", "table", "bed", "lamp", "desk", "shelf", "bench", "sofa"],
}
NOUNS = [noun for those in KINDS.values() for noun in those]
KIND = {noun: kind for kind, those in KINDS.items() for noun in those}
COLOURS = ["red", "green", "blue", "white", "black", "brown", "grey", "yellow"]
NAMES = [
    "ann",
    "bob",
    "carl",
    "dora",
    "emil",
    "frida",
    "gus",
    "hanna",
    "ivan",
    "jane",
    "kurt",
    "lena",
    "mona",
    "nils",
    "olga",
    "paul",
]
PLACES = ["kitchen", "garden", "street", "school", "market", "station", "park", "office"]
MOODS = {"good": ["glad", "calm", "proud", "kind"], "bad": ["sad", "tired", "angry", "afraid"]}
BIGGEST = 20


def digits(number: int) -> str:
    """Each digit is a word."""
    return " ".join(str(number))


def story(draw: Random) -> str:
    """Somebody carries something somewhere, and later it is there; or somebody says so."""
    name, other = draw.sample(NAMES, 2)
    noun, colour = draw.choice(NOUNS), draw.choice(COLOURS)
    place, away = draw.sample(PLACES, 2)
    mood, worse = draw.choice(MOODS["good"]), draw.choice(MOODS["bad"])
    return draw.choice(
        [
            f"{name} takes the {colour} {noun} to the {place} . the {noun} is in the {place} now .",
            f"{name} is in the {place} . {other} is in the {away} . where is {name} ? in the {place} .",
            f"{name} has a {colour} {noun} . {name} gives it to {other} . {other} has a {colour} {noun} now .",
            f"{name} finds the {noun} and is {mood} . {other} has no {noun} and is {worse} .",
            f"{name} looks for a {noun} in the {place} . the {noun} is not there . {name} is {worse} .",
            f"hello , this is {name} . i have lost my {noun} in the {place} . this is a search .",
            f"please , i want to buy a {noun} . this is shopping .",
            f"one thing more : the {colour} {noun} of {name} is broken . this is a repair .",
            f"tell {name} to come to the {place} . this is a meeting .",
            f"a {noun} is a kind of {KIND[noun]} . {name} likes every {KIND[noun]} , so {name} likes the {noun} .",
        ]
    )


def sums(draw: Random) -> str:
    """One sum or difference of numbers up to BIGGEST: a formula, or what somebody has."""
    total = draw.randint(0, BIGGEST)
    part = draw.randint(0, total)
    left, right, whole = digits(part), digits(total - part), digits(total)
    name, noun = draw.choice(NAMES), draw.choice(NOUNS)
    return draw.choice(
        [
            f"{left} + {right} = {whole} .",
            f"{whole} - {left} = {right} .",
            f"{name} has {left} {noun} and buys {right} more . that is {whole} {noun} .",
            f"{name} has {whole} {noun} and sells {left} . that is {right} {noun} .",
        ]
    )


def lists(draw: Random) -> str:
    """What stands where in a list of words."""
    words = draw.sample(NOUNS, draw.randint(3, 4))
    row, place = " ".join(words), draw.randrange(len(words) - 1)
    return draw.choice(
        [
            f"list : {row} . first : {words[0]} . last : {words[-1]} .",
            f"list : {row} . again : {row} .",
            f"list : {row} . how many ? {len(words)} .",
            f"list : {row} . after {words[place]} : {words[place + 1]} .",
            f"list : {row} . before {words[place + 1]} : {words[place]} .",
            f"list : {row} . kinds : {' '.join(KIND[word] for word in words)} .",
            f"list : {row} . backwards : {' '.join(words[::-1])} .",
            f"list : {row} . without the first : {' '.join(words[1:])} .",
        ]
    )


def read(draw: Random) -> str:
    """A line of what the base is trained on."""
    return draw.choices([story, sums, lists], [1, 1, 2])[0](draw)
