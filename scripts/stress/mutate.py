"""Text and bytes, changed at random: the operators that both fuzzers use."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

TOKEN = re.compile(rb"[^\s:,\[\]{}\"']+")
BYTES = (
    *(b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
    *(b"\x1b[31m", b"\r", b"\t", b'"', b"'"),
)

Operator = Callable[[bytes, Sequence[bytes], random.Random], bytes]


def flip(text: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    if not text:
        return text
    at = rng.randrange(len(text))
    return text[:at] + bytes([text[at] ^ 1 << rng.randrange(8)]) + text[at + 1 :]


def insert(text: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    at = rng.randint(0, len(text))
    return text[:at] + (rng.choice(BYTES) if rng.random() < 0.5 else rng.randbytes(rng.randint(1, 4))) + text[at:]


def delete(text: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    at = rng.randint(0, len(text))
    return text[:at] + text[at + rng.randint(1, 20) :]


def cut(text: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    return text[: rng.randint(0, len(text))]


def shuffle_lines(text: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    at = rng.randint(0, len(lines))
    some = lines[at : at + rng.randint(2, 6)]
    rng.shuffle(some)
    return b"".join(lines[:at] + some + lines[at + len(some) :])


def repeat_line(text: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    lines = text.splitlines(keepends=True) or [b"\n"]
    at = rng.randrange(len(lines))
    return b"".join(lines[:at] + [lines[at]] * rng.choice((2, 3, 50)) + lines[at + 1 :])


def indent_line(text: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    lines = text.splitlines(keepends=True) or [b"\n"]
    at = rng.randrange(len(lines))
    changed = rng.choice((lines[at].lstrip(b" "), b" " * rng.randint(1, 9) + lines[at], b"\t" + lines[at]))
    return b"".join([*lines[:at], changed, *lines[at + 1 :]])


def splice_token(text: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    """A word of this text becomes a word, or the whole, of another."""
    places = list(TOKEN.finditer(text))
    other = rng.choice(corpus)
    words = TOKEN.findall(other)
    word = rng.choice(words) if words and rng.random() < 0.7 else other[:20_000]
    if not places:
        return text + word
    place = rng.choice(places)
    return text[: place.start()] + word + text[place.end() :]


def splice_lines(text: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    """Some lines of another text between the lines of this one."""
    lines, others = text.splitlines(keepends=True), rng.choice(corpus).splitlines(keepends=True)
    at, start = rng.randint(0, len(lines)), rng.randint(0, len(others))
    return b"".join(lines[:at] + others[start : start + rng.randint(1, 8)] + lines[at:])


OPERATORS: tuple[Operator, ...] = (
    *(flip, insert, delete, cut, shuffle_lines, repeat_line, indent_line),
    *(splice_token, splice_token, splice_lines),
)


def mutate(text: bytes, corpus: Sequence[bytes], rng: random.Random) -> bytes:
    """One to six changes, mostly few."""
    for _ in range(min(int(rng.expovariate(0.7)) + 1, 6)):
        text = rng.choice(OPERATORS)(text, corpus, rng)
    return text
