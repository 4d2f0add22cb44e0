"""Kinds of rows, and what objectives declare of the rows, rates and heads that they want."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrft.registry.declarations import fault_of
from lrft.registry.rooms import declared


@dataclass(frozen=True)
class RowKind:
    """A kind of rows that objectives take: the formats that give such rows, and what they are, in words."""

    formats: tuple[str, ...]
    words: str
    parts: tuple[str, ...] = ()
    """names of the token sequences of a row, where it has several"""
    answers_only: bool = False
    """only answers can be trained: data.train_on: all is refused"""
    whole: bool = False
    """the tokenizer lays texts out by its own rules, for a model that predicts no tokens: none of them is trained"""
    named: bool = False
    """rows have labels by name"""
    prompted: bool = False
    """data.query_prompt and data.document_prompt are written before its texts"""


# What the class variable `rows` of an objective may name.
ROWS: dict[str, RowKind] = {
    "tokens": RowKind(
        ("messages", "sharegpt", "alpaca", "completion", "text"),
        "conversations, prompts with completions, or documents",
    ),
    "preference": RowKind(
        ("preference",), "pairs of a chosen and a rejected answer to one prompt", ("chosen", "rejected"), True
    ),
    "labelled": RowKind(("labelled",), "texts with labels", whole=True, named=True),
    "scored": RowKind(("scored",), "texts with a number each", whole=True),
    "tagged": RowKind(("tagged",), "words with a label each", whole=True, named=True),
    "pairs": RowKind(
        ("pairs",),
        "pairs of a text and another that belongs to it, with or without texts that do not",
        ("query", "document", "negative"),
        whole=True,
        prompted=True,
    ),
    "kto": RowKind(("kto",), "answers with a label of true or false", answers_only=True),
}

DEFAULT_ROWS = "tokens"


def rows_of(objective: str, options: Mapping[str, Any] | None = None) -> str:
    """The kind of rows that an objective takes. Raises LrftError where an installed package names none of `ROWS`.

    options: of the objective; some values of some declare another kind, by the class variable `rows_by`
    """
    card = declared("objectives")[objective]
    kind: str = card.facts.get("rows", DEFAULT_ROWS)
    for option, kinds in card.facts.get("rows_by", {}).items():
        kind = kinds.get((options or {}).get(option), kind)
    if kind not in ROWS:
        text = f"{card.file}: {card.class_name}.rows is {kind!r}, not one of {', '.join(ROWS)}"
        raise fault_of(card.package, text) if card.package else ValueError(text)
    return kind


def rate_factor(objective: str) -> float:
    """What the default learning rate is multiplied by for this objective."""
    factor: float = declared("objectives")[objective].facts.get("rate_factor", 1.0)
    return factor


def head_of(objective: str) -> str:
    """The kind of head that an objective trains (`lrft.model.head.KINDS`); "" for a language model's own."""
    kind: str = declared("objectives")[objective].facts.get("head", "")
    return kind


def objectives_for(kind: str) -> list[str]:
    """The names of the objectives that take rows of this kind."""
    return [name for name in sorted(declared("objectives")) if rows_of(name) == kind]
