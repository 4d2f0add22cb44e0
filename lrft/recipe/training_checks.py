"""What keys of `training` ask of each other, of the base and of the devices."""

from __future__ import annotations

from lrft import registry
from lrft.recipe.named_entries import one_of
from lrft.recipe.nodes import Node
from lrft.recipe.problems import Problems


def steps_and_compile(root: Node, training: Node, problems: Problems) -> None:
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
    if compiled is not None and compiled.value is True and (is_quantized(root) or _quantizes(root)):
        problems.add(compiled.place, "training.compile does not support a quantised base: remove one of them")
    kernels = training.child("kernels")
    if compiled is not None and compiled.value is True and kernels is not None and kernels.value == "liger":
        later = max(compiled.place, kernels.place, key=lambda place: place.rank)
        problems.add(later, "training.kernels: liger and training.compile make the same kernels: keep one of them")


def under_zero2(root: Node, training: Node, problems: Problems) -> None:
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


def other_optimizer(root: Node, training: Node, problems: Problems) -> None:
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


def schedule(training: Node, problems: Problems) -> None:
    """A schedule beside an optimiser that works with few of them."""
    optimizer, schedule = training.at(("optimizer", "name")), training.at(("lr_scheduler", "name"))
    if optimizer is None or schedule is None or not isinstance(optimizer.value, str):
        return
    chosen = registry.declared("optimizers").get(optimizer.value)
    takes = () if chosen is None else chosen.facts.get("schedules", ())
    if takes and schedule.value not in takes:
        text = f"{optimizer.value} takes {one_of(takes)}, with or without a warm-up; got {schedule.value}"
        problems.add(schedule.place, f"training.lr_scheduler: {text}")


def other_reference(root: Node, training: Node, problems: Problems) -> None:
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
            way = f", or training.objective: {one_of(others)}, which has no reference" if others else ""
            text = f"{name.value} {reason}, and training.objective: {objective.value} measures against the base"
            problems.add(name.place, f"adapter.method: {text}. Use another method{way}")


def beside_streamed(root: Node, problems: Problems) -> None:
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


def _methods(root: Node) -> list[Node]:
    """The name of each entry of adapter.method."""
    method = root.at(("adapter", "method"))
    entries = method.value if method is not None and isinstance(method.value, list) else []
    return [name for entry in entries if (name := entry.child("name")) is not None]


def is_quantized(root: Node) -> bool:
    model = root.child("model")
    node = model.child("quantization") if model is not None else None
    return node is not None and node.value != "none"


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
