"""Reject keys that have no effect because of another key's value.

A default has no wish: only what differs from it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lrft.recipe import schema
from lrft.recipe.nodes import Node, plain
from lrft.recipe.problems import Problems

NO_VALIDATION = ("data.validation", "none")
NO_EVALUATION = ("evaluation.every", "none")


@dataclass(frozen=True)
class Idle:
    """`key` does nothing when all keys of one of `grounds` have these values. asks: which values ask for something."""

    key: str
    grounds: tuple[tuple[tuple[str, Any], ...], ...]
    asks: Callable[[Any], bool] = lambda value: value not in (None, "none", 0, [], {})


KEYS = (
    Idle("training.early_stopping", ((NO_VALIDATION,), (NO_EVALUATION,))),
    Idle("evaluation.every", ((NO_VALIDATION,),)),
    Idle("evaluation.samples", ((NO_VALIDATION,), (NO_EVALUATION,))),
    # `lrft compare` takes this one after the run too, where there are validation rows.
    Idle("evaluation.max_new_tokens", ((NO_VALIDATION,),)),
    Idle("evaluation.micro_batch_size", ((NO_VALIDATION,),)),
    *(Idle(f"evaluation.{key}", ((NO_VALIDATION,), (NO_EVALUATION,))) for key in ("metrics", "best", "sets")),
    # Without an interval the best and the last state are saved: with one state to save, no count applies.
    Idle("checkpoint.keep", tuple((("checkpoint.every", "none"), none) for none in (NO_VALIDATION, NO_EVALUATION))),
    Idle("distributed.shard_over", ((("distributed.strategy", "ddp"),), (("distributed.strategy", "zero2"),))),
)


def refuse(root: Node, problems: Problems) -> None:
    """Add a problem for each key of KEYS that was set in vain, with the keys that are the reason."""
    for idle in KEYS:
        node = _node(root, idle.key)
        if node is None or plain(node) == _default(idle.key) or not idle.asks(plain(node)):
            continue
        met = [ground for ground in idle.grounds if all(_value(root, key) == value for key, value in ground)]
        if met:
            reasons = dict.fromkeys(f"{key} is {value}" for ground in met for key, value in ground)
            problems.add(node.place, f"{idle.key} has no effect: {' and '.join(reasons)}. Remove it, or change that")


def _node(root: Node, key: str) -> Node | None:
    return root.at(tuple(key.split(".")))


def _value(root: Node, key: str) -> Any:
    node = _node(root, key)
    return None if node is None else node.value


def _default(key: str) -> Any:
    section, name = key.split(".")
    model: Any = schema.Recipe.model_fields[section].annotation
    return model.model_fields[name].get_default(call_default_factory=True)
