"""Recipe checks beyond types: methods and options, mutually exclusive keys, version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from lrft import registry
from lrft.errors import nearest
from lrft.recipe import beside, messages, no_effect, taken_gradients
from lrft.recipe.foreign_keys import VALUES
from lrft.recipe.nodes import DEFAULT, Node, mapping, plain
from lrft.recipe.problems import Problems, Refused
from lrft.recipe.schema import LISTED, REGISTERED, DataSection, EvaluationSection
from lrft.recipe.types import is_number

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
        ratio, steps = training.child("warmup_ratio"), training.child("warmup_steps")
        if ratio is not None and steps is not None:
            later = max(ratio.place, steps.place, key=lambda place: place.rank)
            problems.add(later, "training.warmup_ratio and training.warmup_steps are both set: keep one")
        compiled, again = training.child("compile"), training.child("gradient_checkpointing")
        if compiled is not None and compiled.value is True and again is not None and again.value in ("light", "medium"):
            later = max(compiled.place, again.place, key=lambda place: place.rank)
            problems.add(
                later,
                f"training.compile requires gradient_checkpointing none or full: {again.value} caches linear "
                f"outputs, which torch.compile cannot trace",
            )
        if compiled is not None and compiled.value is True and (_is_quantized(root) or _quantizes(root)):
            problems.add(compiled.place, "training.compile does not support a quantised base: remove one of them")
        kernels = training.child("kernels")
        if compiled is not None and compiled.value is True and kernels is not None and kernels.value == "liger":
            later = max(compiled.place, kernels.place, key=lambda place: place.rank)
            problems.add(later, "training.kernels: liger and training.compile make the same kernels: keep one of them")
        _under_zero2(root, training, problems)
        for key, (kind, _) in REGISTERED.items():
            node = training.child(key)
            if node is not None:
                training = training.with_child(key, _registered(node, f"training.{key}", kind, problems))
        _other_optimizer(root, training, problems)
        _schedule(training, problems)
        _other_reference(root, training, problems)
        root = root.with_child("training", training)
    _beside_streamed(root, problems)
    _rows(root, problems)
    _shares(root, problems)
    _streaming(root, problems)
    for (name, key), kind in LISTED.items():
        section = root.child(name)
        listed = section.child(key) if section is not None else None
        if section is not None and listed is not None:
            entries = [_registered(entry, f"{name}.{key}", kind, problems) for entry in listed.value]
            root = root.with_child(name, section.with_child(key, replace(listed, value=entries)))
    _best(root, problems)
    _after(root, problems)
    no_effect.refuse(root, problems)
    beside.refuse(root, problems)
    root = adapter(root, problems)
    taken_gradients.refuse(root, problems)
    return root


def _rows(root: Node, problems: Problems) -> None:
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


def _shares(root: Node, problems: Problems) -> None:
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


def _streaming(root: Node, problems: Problems) -> None:
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


def _best(root: Node, problems: Problems) -> None:
    """evaluation.best names a metric that is measured, and evaluation.answers is for metrics of answers."""
    section = root.child("evaluation")
    if section is None or not isinstance(section.value, dict):
        return
    listed, best, answers = (section.child(key) for key in ("metrics", "best", "answers"))
    entries = listed.value if listed is not None else []
    names = [
        name.value for entry in entries if (name := entry.child("name")) is not None and isinstance(name.value, str)
    ]
    cards = registry.declared("metrics")
    if best is not None and isinstance(best.value, str):
        measured = list(dict.fromkeys(["loss", "perplexity", *(name.rpartition(":")[2] for name in names)]))
        if best.value not in measured:
            text = f"evaluation.best: expected {_one_of(measured)}; got '{best.value}'. evaluation.metrics adds others"
            problems.add(best.place, text)
    of_rows = all(name in cards and cards[name].facts.get("of_rows", False) for name in names)
    if answers is not None and of_rows and answers.value != EvaluationSection.model_fields["answers"].default:
        problems.add(
            answers.place, "evaluation.answers has no effect: no metric of evaluation.metrics looks at answers"
        )


def _after(root: Node, problems: Problems) -> None:
    """An exporter writes one folder, and what is pushed is what `after` makes."""
    section = root.child("after")
    if section is None or not isinstance(section.value, dict):
        return
    listed, merge, push, source = (section.child(key) for key in ("export", "merge", "push", "push_from"))
    named = [
        name for entry in (listed.value if listed is not None else []) if (name := entry.child("name")) is not None
    ]
    names = [name.value for name in named]
    for k, node in enumerate(named):
        if node.value in names[:k]:
            problems.add(
                node.place, f"after.export: {node.value} is listed twice, and both would write export/{node.value}"
            )
    if source is None or not isinstance(source.value, str) or source.value == "adapter":
        return
    if push is None:
        problems.add(source.place, "after.push_from has no effect: there is no after.push. Remove it, or name one")
    made = ["adapter", *(["merged"] if merge is not None and merge.value is True else []), *names]
    if source.value not in made:
        text = (
            f"after.push_from: expected {_one_of(made)}; got '{source.value}'. after.merge and after.export make others"
        )
        problems.add(source.place, text)


def _registered(entry: Node, key: str, kind: str, problems: Problems) -> Node:
    """An entry {name, options} of a registry, with all its options. Adds what is wrong with it."""
    node = entry.child("name")
    if node is None:
        return entry
    if kind == "metrics" and isinstance(node.value, str) and node.value.startswith(registry.PYTHON):
        path, _, function = node.value.removeprefix(registry.PYTHON).rpartition(":")
        if not path or not function.isidentifier():
            problems.add(node.place, f"{key}: expected python:FILE:FUNCTION; got '{node.value}'")
        return entry
    # What is always on cannot be asked for.
    cards = {name: card for name, card in registry.declared(kind).items() if not card.facts.get("always", False)}
    if not isinstance(node.value, str) or node.value not in cards:
        close = nearest(str(node.value).lower(), list(cards))
        theirs = VALUES.get(key, {}).get(node.value) if isinstance(node.value, str) else None
        hint = f". {theirs}" if theirs else f". Did you mean {close[0]}?" if close else ""
        quoted = isinstance(node.value, str) and node.reference is None
        found = f"'{node.value}'" if quoted else messages.got(node, node.value)
        problems.add(node.place, f"{key}: expected {_one_of(cards)}; got {found}{hint}")
        return entry
    return _with_options(entry, key, cards[node.value], problems)


def _one_of(names: Iterable[str]) -> str:
    *first, last = sorted(names) or ["the name of an installed package's"]
    return f"{', '.join(first)} or {last}" if first else last


SEARCHED = ("micro_batch_size", "micro_batch_tokens")


def _under_zero2(root: Node, training: Node, problems: Problems) -> None:
    section = root.child("distributed")
    strategy = section.child("strategy") if section is not None else None
    if strategy is None or strategy.value != "zero2":
        return
    needed = (
        ("precision", "fp16", "training.precision: bf16 or fp32 (fp16 loss scaling is not supported)"),
        ("micro_batch_size", "auto", "a number for training.micro_batch_size (the search for auto is not supported)"),
        (
            "micro_batch_tokens",
            "auto",
            "a number for training.micro_batch_tokens (the search for auto is not supported)",
        ),
    )
    for key, value, reason in needed:
        node = training.child(key)
        if node is not None and node.value == value:
            later = max(strategy.place, node.place, key=lambda place: place.rank)
            problems.add(later, f"distributed.strategy: zero2 requires {reason}")


def _methods(root: Node) -> list[Node]:
    """The name of each entry of adapter.method."""
    method = root.at(("adapter", "method"))
    entries = method.value if method is not None and isinstance(method.value, list) else []
    return [name for entry in entries if (name := entry.child("name")) is not None]


def _other_reference(root: Node, training: Node, problems: Problems) -> None:
    """An objective that measures against the base beside a method that does not train on it."""
    objective = training.at(("objective", "name"))
    declared, cards = registry.declared("objectives"), registry.methods()
    if objective is None or objective.value not in declared:
        return
    if not declared[objective.value].facts.get("referenced", False):
        return
    alike = registry.objectives_for(registry.rows_of(objective.value))
    others = [name for name in alike if not declared[name].facts.get("referenced", False)]
    for name in _methods(root):
        reason = cards[name.value].facts.get("no_reference") if name.value in cards else None
        if reason:
            way = f", or training.objective: {_one_of(others)}, which has no reference" if others else ""
            text = f"{name.value} {reason}, and training.objective: {objective.value} measures against the base"
            problems.add(name.place, f"adapter.method: {text}. Use another method{way}")


def _other_optimizer(root: Node, training: Node, problems: Problems) -> None:
    """A method may bring an optimiser that takes the options of adamw, and zero2 divides the state of adamw: nothing
    else works beside them."""
    node = training.at(("optimizer", "name"))
    if node is None or node.value in ("adamw", None):
        return
    strategy = root.at(("distributed", "strategy"))
    if strategy is not None and strategy.value == "zero2":
        problems.add(node.place, f"training.optimizer: distributed.strategy zero2 needs adamw (got {node.value})")
    cards = registry.methods()
    names = [name.value for name in _methods(root)]
    chosen = registry.declared("optimizers").get(node.value) if isinstance(node.value, str) else None
    blockwise = chosen is not None and chosen.facts.get("blockwise", False)
    for name in names:
        facts = cards[name].facts if name in cards else {}
        if "optimizer" in facts.get("slots", ()):
            text = f"{name} brings its own optimiser, which {node.value} cannot replace; leave it out"
        elif "needs_adamw" in facts:
            text = f"{name} {facts['needs_adamw']}, which {node.value} does not have; use adamw"
        elif blockwise and "edits_moments" in facts:
            text = (
                f"{name} edits single numbers of the optimiser's state, which {node.value} keeps in blocks; use adamw"
            )
        else:
            continue
        problems.add(node.place, f"training.optimizer: {text}")


def _schedule(training: Node, problems: Problems) -> None:
    """A schedule beside an optimiser that works with few of them."""
    optimizer, schedule = training.at(("optimizer", "name")), training.at(("lr_scheduler", "name"))
    if optimizer is None or schedule is None or not isinstance(optimizer.value, str):
        return
    chosen = registry.declared("optimizers").get(optimizer.value)
    takes = () if chosen is None else chosen.facts.get("schedules", ())
    if takes and schedule.value not in takes:
        text = f"{optimizer.value} takes {_one_of(takes)}, with or without a warm-up; got {schedule.value}"
        problems.add(schedule.place, f"training.lr_scheduler: {text}")


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
        _combination(section, known, problems, validation=_has_validation(root), quantized=_is_quantized(root))
    cards = registry.methods()
    filled = [_with_options(entry, "adapter.method", cards[entry.value["name"].value], problems) for entry in known]
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


def _with_options(entry: Node, key: str, card: registry.Declaration, problems: Problems) -> Node:
    """The entry with every option of `card`; values that were not given come from the declaration."""
    given = entry.value["options"]
    try:
        values = card.validate(plain(given))
    except ValidationError as error:
        messages.add_option_errors(error, key, card.name, given, [knob.name for knob in card.knobs], problems)
        return entry
    _together(entry, key, card, values, problems)
    nodes = {key: replace(given.child(key) or Node(None, DEFAULT), value=value) for key, value in values.items()}
    keys = {key: given.keys.get(key, DEFAULT) for key in nodes}
    return entry.with_child("options", Node(nodes, given.place, keys))


def _together(entry: Node, key: str, card: registry.Declaration, values: Mapping[str, Any], problems: Problems) -> None:
    """Adds what is wrong with options that are right by themselves: one that lacks, or that does nothing."""
    given = entry.value["options"]
    for option in card.required:
        if not values[option]:
            place = entry.place if given.child(option) is None else given.child(option).place
            problems.add(place, f"{key}: {card.name} requires {option}, as in {{{card.name}: {{{option}: ...}}}}")
    for option, (other, useful) in card.only_with.items():
        node, default = given.child(option), next(knob.default for knob in card.knobs if knob.name == option)
        if node is not None and values[option] != default and values[other] not in useful:
            wanted = " or ".join(map(str, useful))
            problems.add(
                node.place,
                f"{key}: {card.name}.{option} is only for {other}: {wanted}; {other} is {values[other]}. Remove it, "
                f"or change that",
            )


def _has_validation(root: Node) -> bool:
    data = root.child("data")
    node = data.child("validation") if data is not None else None
    return node is None or node.value != "none"


def _is_quantized(root: Node) -> bool:
    model = root.child("model")
    node = model.child("quantization") if model is not None else None
    return node is not None and node.value != "none"


def _beside_streamed(root: Node, problems: Problems) -> None:
    """What a base that is copied block by block to one device is refused with."""
    placement = root.at(("model", "placement"))
    if placement is None or placement.value != "streamed":
        return
    compiled, strategy = root.at(("training", "compile")), root.at(("distributed", "strategy"))
    if compiled is not None and compiled.value is True:
        problems.add(compiled.place, "training.compile does not support model.placement: streamed. Remove one of them")
    if strategy is not None and strategy.value == "fsdp":
        text = "divides the base over devices, and model.placement: streamed copies it to one. Remove one of them"
        problems.add(strategy.place, f"distributed.strategy: fsdp {text}")


def _quantizes(root: Node) -> bool:
    """Whether a method quantises the base itself: `quantizes` of a declaration is the option and its values that do."""
    method = root.at(("adapter", "method"))
    for entry in method.value if method is not None and isinstance(method.value, list) else []:
        name = entry.child("name")
        card = None if name is None else registry.methods().get(name.value)
        option, *values = ("",) if card is None else card.facts.get("quantizes", ("",))
        given = entry.at(("options", option))
        if given is not None and given.value in values:
            return True
    return False


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
