"""Methods under `adapter`: they exist, go together, and their options are whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lrft import registry
from lrft.errors import nearest
from lrft.recipe.foreign_keys import VALUES
from lrft.recipe.named_entries import with_options
from lrft.recipe.nodes import DEFAULT, Node, mapping
from lrft.recipe.problems import Problems
from lrft.recipe.training_checks import is_quantized
from lrft.recipe.types import is_number


def adapter(root: Node, problems: Problems) -> Node:
    """The tree with the options of adapter.method validated and complete. Adds what does not go together."""
    section = root.child("adapter")
    if section is None or not isinstance(section.value, dict):
        return root
    _both_factors("adapter", section, problems)
    for pattern, override in (section.child("overrides") or mapping({}, DEFAULT)).items():
        if isinstance(override.value, dict):
            _both_factors(f"adapter.overrides.{pattern}", override, problems)
            if not override.value:
                problems.add(override.place, f"adapter.overrides.{pattern}: give rank, alpha or scale")
    _foreign_targets(section, problems)
    method = section.child("method")
    if method is None or not isinstance(method.value, list):
        return root
    known = [entry for entry in method.value if _is_known(entry, problems)]
    if len(known) == len(method.value):
        _combination(section, known, problems, validation=_has_validation(root), quantized=is_quantized(root))
    cards = registry.methods()
    filled = [with_options(entry, "adapter.method", cards[entry.value["name"].value], problems) for entry in known]
    return root.with_child("adapter", section.with_child("method", replace(method, value=filled)))


def _both_factors(key: str, section: Node, problems: Problems) -> None:
    alpha, scale = section.child("alpha"), section.child("scale")
    if alpha is not None and scale is not None and alpha.value != "auto":
        later = max(alpha.place, scale.place, key=lambda place: place.rank)
        problems.add(later, f"{key}.alpha and {key}.scale are both set: keep one (scale is the factor itself)")


def _foreign_targets(section: Node, problems: Problems) -> None:
    """`all` is how others write all-linear; taken as a module's name it would only match nothing, later."""
    key = "adapter.target_modules"
    targets = section.child("target_modules")
    items = [targets, *(child for _, child in targets.items())] if targets is not None else []
    for node in items:
        if isinstance(node.value, str) and node.value in VALUES[key]:
            problems.refuse(node.place, f"{key}: got '{node.value}'. {VALUES[key][node.value]}")


def _is_known(entry: Node, problems: Problems) -> bool:
    """Whether the entry {name, options} names a method of the catalog."""
    node = entry.value["name"]
    name, cards = node.value, registry.methods()
    if name in cards:
        return True
    if node.place in problems.refused:
        return False
    if name in VALUES["adapter.method"]:
        problems.add(node.place, f"adapter.method: {VALUES['adapter.method'][name]}")
        return False
    close = nearest(name.lower(), [*cards, *registry.PRESETS])
    shown = node.reference or (name if len(name) <= 60 else f"{name[:57]}...")
    hint = f"Did you mean {close[0]}? " if close and node.reference is None else ""
    problems.add(node.place, f"adapter.method: '{shown}' is not a method. {hint}`lrft methods` lists them")
    return False


def _has_validation(root: Node) -> bool:
    data = root.child("data")
    node = data.child("validation") if data is not None else None
    return node is None or node.value != "none"


def _combination(section: Node, entries: list[Node], problems: Problems, *, validation: bool, quantized: bool) -> None:
    dropout = section.child("dropout")
    share = float(dropout.value) if dropout is not None and is_number(dropout.value) else 0.0
    factors = list(_factors(section))
    names = [entry.value["name"].value for entry in entries]
    found = registry.conflicts(
        names, dropout=share, alpha_given=bool(factors), validation=validation, quantized=quantized
    )
    for conflict in found:
        if conflict.index is None:
            key, node = factors[0]
            problems.add(node.place, f"{key}: {conflict.text}")
        else:
            problems.add(entries[conflict.index].place, f"adapter.method: {conflict.text}")


def _factors(section: Node) -> Iterator[tuple[str, Node]]:
    """Every alpha and scale that was given, by its key."""
    overrides = section.child("overrides") or mapping({}, DEFAULT)
    places = [
        ("adapter", section),
        *((f"adapter.overrides.{name}", node) for name, node in overrides.items()),
    ]
    for prefix, holder in places:
        for key in ("alpha", "scale"):
            node = holder.child(key)
            if node is not None and node.value != "auto":
                yield f"{prefix}.{key}", node
