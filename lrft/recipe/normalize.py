"""Short forms to the normal form, before files are merged: one may extend what another wrote short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lrft import registry
from lrft.recipe.nodes import DEFAULT, Node, Path, Place, Source, dotted, mapping, plain
from lrft.recipe.problems import Problems
from lrft.recipe.schema import CHOICE_OPTIONS, LISTED, REGISTERED, Recipe
from lrft.registry import DEFAULT_METHOD, PRESETS


def expand(root: Node) -> Node:
    """`model: X`, `adapter: lora` and `data: F` to maps; entries of data.train to maps with a path."""
    for key, inner in (("model", "name"), ("adapter", "method"), ("data", "train")):
        node = root.child(key)
        short = node is not None and node.value is not None and not isinstance(node.value, dict)
        if node is not None and short:
            root = root.with_child(key, mapping({inner: node}, node.place))
    adapter = root.child("adapter")
    method = adapter.child("method") if adapter is not None else None
    if adapter is not None and method is not None and method.value is not None:
        root = root.with_child("adapter", adapter.with_child("method", _bare_names(method)))
    data = root.child("data")
    train = data.child("train") if data is not None else None
    if data is not None and train is not None and train.value is not None:
        root = root.with_child("data", data.with_child("train", _entries(train)))
    return root


def _bare_names(method: Node) -> Node:
    """`- pissa:` with nothing after the colon means pissa; null would take the name itself away."""
    if isinstance(method.value, list):
        return replace(method, value=[_bare_names(item) for item in method.value])
    if isinstance(method.value, dict):
        empty = {key: mapping({}, child.place) for key, child in method.value.items() if child.value is None}
        return replace(method, value={**method.value, **empty})
    return method


def _entries(train: Node) -> Node:
    items = train.value if isinstance(train.value, list) else [train]
    return Node([_entry(item) for item in items], train.place)


def _entry(item: Node) -> Node:
    written_out = isinstance(item.value, dict | list) or item.value is None
    return item if written_out else mapping({"path": item}, item.place)


def normalise(root: Node, problems: Problems) -> Node:
    """What needs the merged recipe: entries of adapter.method, choices with options, epochs or max_steps."""
    adapter = root.child("adapter") or mapping({}, DEFAULT)
    if isinstance(adapter.value, dict):
        root = with_rate(root, adapter)
        root = root.with_child("adapter", with_methods(adapter, problems))
    training = root.child("training")
    if training is not None and isinstance(training.value, dict):
        for key in REGISTERED:
            node = training.child(key)
            if node is not None:
                training = training.with_child(key, _named(node, f"training.{key}", problems))
        if training.child("max_steps") is not None and training.child("epochs") is None:
            training = training.with_child("epochs", Node(None, DEFAULT))
        root = with_choices(with_declared(root.with_child("training", training)), problems)
    for name, key in LISTED:
        section = root.child(name)
        listed = section.child(key) if section is not None else None
        if section is not None and listed is not None:
            items = listed.value if isinstance(listed.value, list) else [listed]
            entries = [entry for item in items if (entry := _named(item, f"{name}.{key}", problems)) is not None]
            root = root.with_child(name, section.with_child(key, Node(entries, listed.place)))
    return root


def with_rate(root: Node, adapter: Node) -> Node:
    """The tree with the learning rate that its methods declare, where it gives none. Presets still have their names."""
    training = root.child("training") or mapping({}, DEFAULT)
    if not isinstance(training.value, dict) or training.child("learning_rate") is not None:
        return root
    words = _words(adapter)
    known = registry.methods().names | PRESETS.keys()
    if not words or any(not isinstance(word, str) or word not in known for word in words):
        return root  # refused later
    rate = registry.default_rate(words)
    of = f"default of {rate.owner}" + (f", {rate.source}" if rate.source else "")
    objective = _objective(training)
    factor = registry.rate_factor(objective) if objective in registry.declared("objectives") else 1.0
    of += f", times {factor:g} for {objective}" if factor != 1 else ""
    node = Node(rate.value if factor == 1 else float(f"{rate.value * factor:.6g}"), Place(Source(of)))
    return root.with_child("training", training.with_child("learning_rate", node))


def with_declared(root: Node) -> Node:
    """The tree with the defaults of other keys that the entries of `REGISTERED` declare, where it gives none."""
    for key, (kind, _) in REGISTERED.items():
        node = root.at(("training", key, "name"))
        card = registry.declared(kind).get(node.value) if node is not None and isinstance(node.value, str) else None
        for wanted, value in ({} if card is None else card.defaults).items():
            section, word = wanted.split(".")
            if root.child(section) is None and Recipe.model_fields[section].is_required():
                continue  # refused later
            holder = root.child(section) or mapping({}, DEFAULT)
            if isinstance(holder.value, dict) and holder.child(word) is None and card is not None:
                place = Place(Source(f"default of {card.name}"))
                root = root.with_child(section, holder.with_child(word, Node(value, place)))
    return root


def with_choices(root: Node, problems: Problems) -> Node:
    """The tree with the choices of `CHOICE_OPTIONS` as {name, options...}."""
    for key in CHOICE_OPTIONS:
        training = root.at(("training",))
        node = root.at(("training", key))
        if training is not None and node is not None:
            root = root.with_child("training", training.with_child(key, _choice(node, ("training", key), problems)))
    return root


def _objective(training: Node) -> str | None:
    """The name under training.objective, as it is written; None for what is no name, which is refused later."""
    node = training.child("objective")
    written = node.value if node is not None else None
    name = next(iter(written), None) if isinstance(written, dict) else written
    return name if isinstance(name, str) else None


def _words(adapter: Node) -> list[Any]:
    """The names under adapter.method, as they are written."""
    method = adapter.child("method") or Node(DEFAULT_METHOD, DEFAULT)
    items = method.value if isinstance(method.value, list) else [method]
    return [word for item in items for word in (item.value if isinstance(item.value, dict) else (item.value,))]


def with_methods(adapter: Node, problems: Problems) -> Node:
    """An adapter section whose method is a list of {name, options}."""
    method = adapter.child("method") or Node(DEFAULT_METHOD, DEFAULT)
    items = method.value if isinstance(method.value, list) else [method]
    entries = [part for item in items for part in _parts(_named(item, "adapter.method", problems), problems)]
    if not items:
        problems.add(method.place, "adapter.method: the list is empty; name a method, or leave the key out")
    targets = adapter.child("target_modules")
    chooser = None if targets is None else _chooser(plain(targets))
    if targets is not None and chooser is not None:
        adapter = adapter.with_child("target_modules", Node("all-linear", targets.place))
        if not any(entry.value["name"].value == chooser for entry in entries):
            entries.append(mapping({"name": Node(chooser, targets.place), "options": mapping({}, DEFAULT)}, DEFAULT))
    return adapter.with_child("method", Node(entries, method.place))


def _chooser(targets: Any) -> str | None:
    """The part that chooses among all layers, when it stands in the place of the layers that are to be chosen."""
    word = targets[0] if isinstance(targets, list) and len(targets) == 1 else targets
    card = registry.methods().get(word) if isinstance(word, str) else None
    return card.name if card is not None and "placement" in card.slots else None


def _parts(entry: Node | None, problems: Problems) -> list[Node]:
    """The entry itself, or those that a preset stands for."""
    if entry is None:
        return []
    name, options = entry.value["name"], entry.value["options"]
    preset = PRESETS.get(name.value) if isinstance(name.value, str) else None
    if preset is None:
        return [entry]
    if options.value:
        problems.add(name.place, f"adapter.method: {name.value} has no options of its own: it is {preset.written}")
    return [
        mapping({"name": Node(word, name.place), "options": _written(values, name.place)}, name.place)
        for word, values in preset.entries
    ]


def _written(values: Mapping[str, Any], place: Place) -> Node:
    return mapping({key: Node(value, place) for key, value in values.items()}, place)


def _named(item: Node, key: str, problems: Problems) -> Node | None:
    """NAME or {NAME: {option: value}} as {name, options}. Adds a problem for any other shape."""
    if isinstance(item.value, str):
        return mapping({"name": item, "options": mapping({}, item.place)}, item.place)
    if isinstance(item.value, dict) and len(item.value) == 1:
        ((name, options),) = item.value.items()
        if isinstance(options.value, dict):
            return mapping({"name": Node(name, item.keys[name]), "options": options}, item.place)
        problems.add(options.place, f"{key}: expected a map of {name}'s options, as in {{{name}: {{...}}}}")
        return None
    problems.add(item.place, f"{key}: expected a name, or one name with options as in {{NAME: {{...}}}}")
    return None


def _choice(node: Node, path: Path, problems: Problems) -> Node:
    """`cosine` or {cosine: {min_lr_ratio: 0.1}} as {name, options...}. Adds a problem for any other shape."""
    if not isinstance(node.value, dict):
        return mapping({"name": node}, node.place)
    known = CHOICE_OPTIONS[path[-1]]  # type: ignore[index]
    example = next(iter(known))
    if len(node.value) != 1 or not isinstance(next(iter(node.value.values())).value, dict):
        options = known[example][0]
        problems.add(
            node.place,
            f"{dotted(path)}: expected one name, or one with options as in {{{example}: {{{options}: ...}}}}",
        )
        return mapping({}, node.place)
    ((name, options_node),) = node.value.items()
    for option in options_node.value:
        if name in known and option not in known[name]:
            takes = f"it takes {' and '.join(known[name])}" if known[name] else "it takes no options"
            problems.add(options_node.keys[option], f"{dotted(path)}: {option} is no option of {name}; {takes}")
    allowed = {k: v for k, v in options_node.value.items() if name not in known or k in known[name]}
    keys = {"name": node.keys[name], **{k: options_node.keys[k] for k in allowed}}
    return Node({"name": Node(name, node.keys[name]), **allowed}, node.place, keys)
