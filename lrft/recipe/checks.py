"""Recipe checks beyond types: the version, and what keys and methods ask of each other."""

from __future__ import annotations

from dataclasses import replace

from lrft.recipe import (
    adapter_checks,
    beside,
    data_checks,
    named_entries,
    no_effect,
    result_checks,
    taken_gradients,
    training_checks,
)
from lrft.recipe.nodes import Node
from lrft.recipe.problems import Problems, Refused
from lrft.recipe.schema import LISTED, REGISTERED

FORMAT = 1


def version(root: Node) -> None:
    """Raises Refused for a newer format: nothing else that would be said about the file could be trusted."""
    node = root.child("lrft")
    if node is not None and type(node.value) is int and node.value > FORMAT:
        raise Refused(node.place, f"this recipe was written for a newer lrft: format {node.value}, here {FORMAT}")


def all_of(root: Node, problems: Problems) -> Node:
    """The tree of a whole recipe with the options of its methods filled in."""
    training = root.child("training")
    if training is not None:
        training_checks.steps_and_compile(root, training, problems)
        training_checks.under_zero2(root, training, problems)
        for key, (kind, _) in REGISTERED.items():
            node = training.child(key)
            if node is not None:
                training = training.with_child(key, named_entries.registered(node, f"training.{key}", kind, problems))
        training_checks.other_optimizer(root, training, problems)
        training_checks.schedule(training, problems)
        training_checks.other_reference(root, training, problems)
        root = root.with_child("training", training)
    training_checks.beside_streamed(root, problems)
    data_checks.rows(root, problems)
    data_checks.shares(root, problems)
    data_checks.streaming(root, problems)
    for (name, key), kind in LISTED.items():
        section = root.child(name)
        listed = section.child(key) if section is not None else None
        if section is not None and listed is not None:
            entries = [named_entries.registered(entry, f"{name}.{key}", kind, problems) for entry in listed.value]
            root = root.with_child(name, section.with_child(key, replace(listed, value=entries)))
    result_checks.best(root, problems)
    result_checks.after(root, problems)
    no_effect.refuse(root, problems)
    beside.refuse(root, problems)
    root = adapter_checks.adapter(root, problems)
    taken_gradients.refuse(root, problems)
    return root
