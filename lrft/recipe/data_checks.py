"""What keys of `data` ask of each other and of the objective."""

from __future__ import annotations

from lrft import registry
from lrft.recipe.nodes import Node, plain
from lrft.recipe.problems import Problems
from lrft.recipe.schema import REGISTERED, DataSection


def rows(root: Node, problems: Problems) -> None:
    """Formats of data.train that the objective does not take, and what is trained on in its rows."""
    named = root.at(("training", "objective", "name"))
    objective = named.value if named is not None else REGISTERED["objective"][1]
    if objective not in registry.declared("objectives"):
        return
    options = root.at(("training", "objective", "options"))
    kind = registry.rows_of(objective, None if options is None else plain(options))
    train = root.at(("data", "train"))
    entries = train.value if train is not None and isinstance(train.value, list) else []
    for k, entry in enumerate(entries):
        node = entry.child("format")
        known = [name for row in registry.ROWS.values() for name in row.formats]
        if node is None or node.value not in known or node.value in registry.ROWS[kind].formats:
            continue
        theirs = next(other for other, row in registry.ROWS.items() if node.value in row.formats)
        way = "".join(f". training.objective: {name} takes this format" for name in registry.objectives_for(theirs)[:1])
        text = f"{objective} takes {registry.ROWS[kind].words} ({', '.join(registry.ROWS[kind].formats)})"
        problems.add(node.place, f"data.train.{k}.format: got {node.value}, but training.objective: {text}{way}")
    packing = root.at(("data", "packing"))
    if packing is not None and packing.value is True and registry.head_of(objective):
        text = f"data.packing: {objective} trains a head, which answers each row by itself: expected auto or false"
        problems.add(packing.place, f"{text}; got true")
    for key, has, what in (
        *((key, registry.ROWS[kind].prompted, "no such texts") for key in ("query_prompt", "document_prompt")),
        ("labels", registry.ROWS[kind].named, "no labels"),
    ):
        node = root.at(("data", key))
        if node is not None and node.value and not has:
            text = f"has no effect: the rows of training.objective: {objective} have {what}. Remove it"
            problems.add(node.place, f"data.{key} {text}")
    on = root.at(("data", "train_on"))
    if on is not None and on.value == "all" and registry.ROWS[kind].answers_only:
        text = f"data.train_on: {objective} compares answers: expected assistant or last-assistant; got all"
        problems.add(on.place, text)


def shares(root: Node, problems: Problems) -> None:
    """Weights of entries of data.train: all or none, and of several; stop is for them."""
    data = root.child("data")
    train = data.child("train") if data is not None else None
    entries = train.value if train is not None and isinstance(train.value, list) else []
    weights = [entry.child("weight") for entry in entries if isinstance(entry.value, dict)]
    given = [node for node in weights if node is not None]
    stop = data.child("stop") if data is not None else None
    if given and len(entries) == 1:
        problems.add(given[0].place, "data.train.0.weight has no effect: there is one entry. Remove it")
    elif given and len(given) < len(entries):
        k = weights.index(None)
        problems.add(entries[k].place, f"data.train.{k} has no weight, but others have: give all a weight, or none")
    if stop is not None and stop.value != "first" and not given:
        problems.add(
            stop.place, "data.stop has no effect: no entry of data.train has a weight. Remove it, or give them"
        )


def streaming(root: Node, problems: Problems) -> None:
    """What a stream of rows cannot have, since its rows are known when they come."""
    streaming, window = root.at(("data", "streaming")), root.at(("data", "window"))
    defaults = {name: field.default for name, field in DataSection.model_fields.items()}
    if streaming is None or streaming.value is not True:
        if window is not None and window.value != defaults["window"]:
            problems.add(window.place, "data.window has no effect: data.streaming is not true. Remove it, or set that")
        return
    steps, epochs = root.at(("training", "max_steps")), root.at(("training", "epochs"))
    if steps is None or steps.value is None:
        text = "data.streaming needs training.max_steps: how many rows there are is known when all have come"
        problems.add(streaming.place, text)
    elif epochs is not None and epochs.value is not None:
        problems.add(epochs.place, "training.epochs: a stream of rows ends by training.max_steps alone. Remove it")
    validation = root.at(("data", "validation"))
    if validation is not None and not isinstance(validation.value, str) and validation.value != defaults["validation"]:
        text = "no share of a stream can be held out: expected the path of other data, or none"
        problems.add(validation.place, f"data.validation: {text}; got {validation.value}")
    train = root.at(("data", "train"))
    for k, entry in enumerate(train.value if train is not None and isinstance(train.value, list) else []):
        for key in ("weight", "limit"):
            node = entry.child(key) if isinstance(entry.value, dict) else None
            if node is not None and node.value is not None:
                text = "does not go with data.streaming, which takes all rows in the order of the files: remove it"
                problems.add(node.place, f"data.train.{k}.{key} {text}")
    named = root.at(("training", "objective", "name"))
    if named is not None and isinstance(named.value, str) and registry.head_of(named.value):
        text = f"{named.value} does not go with data.streaming: its labels are numbered over all rows"
        problems.add(named.place, f"training.objective: {text}")
