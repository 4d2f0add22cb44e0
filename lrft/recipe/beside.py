"""Checks of what is trained beside the adapters: tokens that are added, modules in full, rows, biases, norms."""

from __future__ import annotations

from lrft.recipe.nodes import Node, plain
from lrft.recipe.problems import Problems

KEYS = ("modules_to_save", "train_tokens", "biases", "norms")


def text_of(entry: Node) -> str | None:
    """The text of a new token, in its short form or not; None for what is none."""
    node = entry.child("token") if isinstance(entry.value, dict) else entry
    return node.value if node is not None and isinstance(node.value, str) else None


def refuse(root: Node, problems: Problems) -> None:
    """Add a problem for each key that would do nothing, or that another one contradicts."""
    added = root.at(("model", "add_tokens"))
    tokens: list[Node] = [] if added is None else added.value if isinstance(added.value, list) else [added]
    texts = [text_of(entry) for entry in tokens]
    for k, text in enumerate(texts):
        if text is not None and text in texts[:k]:
            problems.add(tokens[k].place, f"model.add_tokens: {text} is listed twice")
    trained = root.at(("adapter", "train_tokens"))
    if trained is not None and trained.value == "added" and not tokens:
        text = "adapter.train_tokens: added means the tokens of model.add_tokens, and there are none"
        problems.add(trained.place, f"{text}. Give them, or list tokens here")
    where = root.at(("adapter", "train_tokens_in"))
    # A resolved recipe has its default.
    if where is not None and where.value != "embedding" and (trained is None or not plain(trained)):
        text = "adapter.train_tokens_in has no effect: adapter.train_tokens names no token. Remove it"
        problems.add(where.place, text)
    full, untie = root.at(("adapter", "modules_to_save")), root.at(("adapter", "untie"))
    if untie is not None and untie.value is True and (full is None or not plain(full)):
        problems.add(untie.place, "adapter.untie has no effect: adapter.modules_to_save trains no module. Remove it")
    strategy = root.at(("distributed", "strategy"))
    if strategy is not None and strategy.value == "fsdp":
        for key in KEYS:
            node = root.at(("adapter", key))
            if node is not None and plain(node) not in ([], (), "none", False, None):
                text = f"adapter.{key} does not go with distributed.strategy: fsdp, which divides the base"
                problems.add(node.place, f"{text}. Use ddp or zero2")
