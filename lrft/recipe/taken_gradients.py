"""Keys that do not go with an optimiser that takes gradients as they arrive (`takes_gradients` of a declaration).

Clipping needs the norm of all, fp16's loss scale a look at all before the first is used; a step that is made in the
backward pass has one such pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lrft import registry
from lrft.recipe.nodes import Node
from lrft.recipe.problems import Problems
from lrft.recipe.schema import TrainingSection


def refuse(root: Node, problems: Problems) -> None:
    """root: with the options of its methods filled in."""
    methods = root.at(("adapter", "method"))
    for entry in methods.value if methods is not None and isinstance(methods.value, list) else []:
        name = entry.child("name")
        card = registry.methods().get(name.value) if name is not None else None
        option, value, makes = ("", None, "") if card is None else card.facts.get("takes_gradients", ("", None, ""))
        given = entry.at(("options", option)) if option else None
        if given is None or given.value != value:
            continue
        shown = f"{name.value} with {option}: {str(value).lower()}"
        for key, wanted, found, why in wrong(root, makes):
            node = root.at(("training", key))
            place = entry.place if node is None else node.place
            problems.add(place, f"training.{key}: {shown} {why}: expected {wanted}; got {found}")


def wrong(root: Node, makes: str) -> Iterator[tuple[str, Any, Any, str]]:
    """(key of training, what is wanted, what it has, why) of each that does not go with it."""
    limit, precision, micro, whole = (
        of_training(root, key) for key in ("max_grad_norm", "precision", "micro_batch_size", "global_batch_size")
    )
    if limit not in ("none", None):
        yield "max_grad_norm", "none", limit, "takes each gradient as it arrives, before the norm of all is known"
    if precision == "fp16":
        yield "precision", "bf16 or fp32", precision, "takes gradients before the loss scale can be taken out of all"
    if makes == "step" and micro != whole:
        yield "micro_batch_size", f"{whole}, the global batch size", micro, "makes its step in one backward pass"
    elif micro == "auto":
        yield "micro_batch_size", "a number", micro, "is not tried for memory"


def of_training(root: Node, key: str) -> Any:
    """The value of a key of training, or its default."""
    node = root.at(("training", key))
    return TrainingSection.model_fields[key].default if node is None else node.value
