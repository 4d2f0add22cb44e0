"""What several keys decide together: batch sizes, the end of a run, intervals, methods, options of names, data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lrft import registry
from lrft.moving.draft import Draft
from lrft.recipe.schema import CHOICE_OPTIONS, REGISTERED

PLACEHOLDER = {"model.name": "MODEL", "data.train": "train.jsonl", "output_dir": "runs/first"}
"""what stands in a recipe where the configuration says nothing"""


def finish(draft: Draft) -> None:
    """Turn what stands under keys that no recipe has into keys of a recipe, in the order of `STEPS`."""
    for step in STEPS:
        step(draft)


def _batch(draft: Draft) -> None:
    count: dict[str, int] = {}
    for part in ("per_device", "accumulation", "devices", "nodes", "global"):
        value = draft.values.get(f"batch.{part}")
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            count[part] = value
        elif f"batch.{part}" in draft.values:
            draft.lose(f"batch.{part}", "expected a whole number")
    rows = count.get("per_device", 1)
    whole = rows * count.get("accumulation", 1) * count.get("devices", 1) * count.get("nodes", 1)
    if count:
        draft.values["training.global_batch_size"] = count.get("global", whole)
    if "per_device" in count:
        draft.move("batch.per_device", "training.micro_batch_size", min(rows, count.get("global", rows)))
    for part in ("accumulation", "devices", "nodes", "global"):
        if part in count:
            draft.move(f"batch.{part}", "training.global_batch_size", draft.values["training.global_batch_size"])


def _end(draft: Draft) -> None:
    """A number of steps decides alone where both are given. Passes of mlx-lm are steps of its accumulated batch."""
    if "batch.passes" in draft.values:
        passes, each = draft.values["batch.passes"], _accumulated(draft)
        draft.move("batch.passes", "training.max_steps", max(passes // each, 1))
        for key in ("evaluation.every", "checkpoint.every", "logging.every"):
            if isinstance(value := draft.values.get(key), int):
                draft.values[key] = max(value // each, 1)
    if "training.max_steps" in draft.values and "training.epochs" in draft.values:
        draft.lose("training.epochs", "max_steps ends the run", needless=True)
    if "training.warmup_steps" in draft.values and "training.warmup_ratio" in draft.values:
        steps = draft.values["training.warmup_steps"]
        loser = "ratio" if steps or draft.taken_by_default("training.warmup_ratio") else "steps"
        draft.lose(f"training.warmup_{loser}", "the other of warmup_steps and warmup_ratio decides", needless=True)


def _accumulated(draft: Draft) -> int:
    lines = [line.value for line in draft.lines if line.key.endswith("accumulation_steps")]
    return lines[0] if lines and isinstance(lines[0], int) and lines[0] > 0 else 1


def _intervals(draft: Draft) -> None:
    for section, verb in (("evaluation", "evaluates"), ("checkpoint", "saves")):
        every, per_epoch, strategy = (f"{section}.{key}" for key in ("every", "per_epoch", "strategy"))
        chosen = draft.values.get(strategy)
        if chosen in ("no", "none", False):
            draft.move(strategy, every, "none")
        elif chosen == "epoch" and per_epoch not in draft.values:
            draft.move(strategy, per_epoch, 1)
        elif strategy in draft.values:
            draft.lose(strategy, f"{section}.every counts steps, or is a fraction of the run", needless=True)
        if per_epoch in draft.values:
            _per_epoch(draft, per_epoch, every, verb)


def _nothing_held_out(draft: Draft) -> None:
    if draft.values.get("data.validation") == "none":
        for key in [key for key in draft.values if key.startswith("evaluation.") or key == "training.early_stopping"]:
            draft.lose(key, "no rows are held out", needless=True)


def _per_epoch(draft: Draft, per_epoch: str, every: str, verb: str) -> None:
    times, epochs = draft.values[per_epoch], draft.values.get("training.epochs")
    if not isinstance(times, int | float) or times <= 0:
        draft.move(per_epoch, every, "none")
    elif every in draft.values and not draft.taken_by_default(every):
        draft.lose(per_epoch, f"{every} is given in steps", needless=True)
    elif not isinstance(epochs, int | float):
        draft.lose(per_epoch, f"{every}: a fraction of the run, or a number of steps")
    elif times * epochs <= 1:
        draft.lose(per_epoch, f"a run {verb} at its end", needless=True)
    else:
        draft.move(per_epoch, every, round(1 / (times * epochs), 6))


def _methods(draft: Draft) -> None:
    """The entries of adapter.method: one that builds the update, then parts."""
    cards, entries = registry.methods(), draft.values.get("adapter.method", [])
    names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    builders = [name for name in names if name in cards and cards[name].builds]
    special = [name for name in builders if name != registry.DEFAULT_METHOD]
    if special:
        entries = [entry for entry, name in zip(entries, names, strict=True) if name not in builders or name in special]
    parts = [entry for entry in entries if entry != registry.DEFAULT_METHOD]
    draft.values["adapter.method"] = (
        parts[0]
        if len(parts) == 1 and isinstance(parts[0], str)
        else ([registry.DEFAULT_METHOD, *parts] if parts and not special else parts or registry.DEFAULT_METHOD)
    )
    if special:  # what a tool takes for its LoRA says nothing of another method
        for key in [key for key in draft.values if key.startswith("adapter.") and draft.taken_by_default(key)]:
            if key != "adapter.method":
                draft.lose(key, "", needless=True)


def _quantization(draft: Draft) -> None:
    method = draft.values.get("model.quantization.method")
    if method is not None and str(method).lower() not in ("bnb", "bitsandbytes"):
        draft.lose("model.quantization", f"weights in the format of {method} are not trained on")
        draft.lose("model.quantization.method", "model.quantization: nf4, fp4, int8 or fp8")
    kind = draft.values.get("model.quantization.type")
    if "model.quantization" in draft.values and kind in ("nf4", "fp4"):
        draft.move("model.quantization.type", "model.quantization", kind)
    elif kind is not None:
        draft.lose("model.quantization.type", "has a meaning with a base in 4 bits alone", needless=True)
    if "model.quantization.method" in draft.values:
        draft.move("model.quantization.method", "model.quantization", draft.values.get("model.quantization", "nf4"))
        if "model.quantization" not in [line.place for line in draft.lines if line.key != "quantization_method"]:
            draft.lose("model.quantization", "has a meaning with a number of bits alone", needless=True)


def _precision(draft: Draft) -> None:
    """bf16 as the dtype of the weights alone says the computation's as well, where nothing else does."""
    if draft.values.get("model.precision") == "bfloat16":
        draft.values.setdefault("training.precision", "bf16")


def _named(key: str) -> Callable[[Draft], None]:
    """A step that joins a name of a registry (training.objective, training.optimizer) with its options."""
    kind, default = REGISTERED[key.rsplit(".", 1)[1]]

    def step(draft: Draft) -> None:
        name, options = _split(draft.values.get(key, default))
        known = [knob.name for knob in registry.declared(kind)[name].knobs]
        for place in [place for place in draft.values if place.startswith(f"{key}.")]:
            option = place.rsplit(".", 1)[1]
            if option in known:
                options[option] = draft.values.pop(place)
            else:
                also = "" if key in draft.values else f"; where it belongs to another, {key} names that"
                draft.lose(place, f"{name} has no {option}{also}", needless=draft.taken_by_default(place))
        if key in draft.values or options:
            draft.values[key] = {name: options} if options else name

    return step


def _split(choice: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(choice, str):
        return choice, {}
    ((name, options),) = choice.items()
    return name, dict(options)


def _betas(draft: Draft) -> None:
    """beta1 and beta2 of an optimiser, given one by one, as one pair."""
    first, second = "training.optimizer.beta1", "training.optimizer.beta2"
    if first in draft.values or second in draft.values:
        pair = [draft.values.get(first, 0.9), draft.values.get(second, 0.999)]
        for key in (first, second):
            if key in draft.values:
                draft.move(key, "training.optimizer.betas", pair)


def _schedule(draft: Draft) -> None:
    key = "training.lr_scheduler"
    options = draft.values.pop(f"{key}.options", {})
    if f"{key}.min_lr_ratio" in draft.values:
        options["min_lr_ratio"] = draft.values.pop(f"{key}.min_lr_ratio")
    name = draft.values.get(key, "cosine")
    wrong = sorted(set(options) - set(CHOICE_OPTIONS["lr_scheduler"][name]))
    for option in wrong:
        options.pop(option)
    for place in (f"{key}.options", f"{key}.min_lr_ratio"):
        if wrong:
            draft.lose(place, f"{name} has no {', '.join(wrong)}")
    if options:
        draft.values[key] = {name: options}


def _trackers(draft: Draft) -> None:
    key = "logging.report_to"
    names = list(draft.values.pop(key, []))
    options: dict[str, dict[str, Any]] = {}
    for place in [place for place in draft.values if place.startswith(f"{key}.")]:
        _, tracker, option = place.rsplit(".", 2)
        options.setdefault(tracker, {})[option] = draft.values.pop(place)
    names += [name for name in options if name not in names]
    if names:
        draft.values[key] = [{name: options[name]} if name in options else name for name in names]


def _data(draft: Draft) -> None:
    """Options that hold for every entry of data.train go to each."""
    entries = [entry if isinstance(entry, dict) else {"path": entry} for entry in draft.values.get("data.train", [])]
    for place in [place for place in draft.values if place.startswith("data.train.")]:
        option, value = place.rsplit(".", 1)[1], draft.values.pop(place)
        if not entries:
            draft.lose(place, "no data are named")
        elif option == "configuration":
            entries = [{**entry, "path": f"{entry['path']}/{value}"} for entry in entries]
        elif option == "weight" and len(value) != len(entries):
            draft.lose(place, f"{len(value)} weights for {len(entries)} entries")
        else:
            each = value if option == "weight" else [value] * len(entries)
            entries = [{**entry, option: entry.get(option, item)} for entry, item in zip(entries, each, strict=True)]
    if entries:
        draft.values["data.train"] = entries


def _scale(draft: Draft) -> None:
    if "adapter.scale" in draft.values and "adapter.alpha" in draft.values:
        draft.lose("adapter.alpha", "adapter.scale is given")


STEPS: tuple[Callable[[Draft], None], ...] = (
    *(_batch, _end, _intervals, _nothing_held_out, _methods, _scale, _quantization, _precision, _betas),
    *(_named("training.objective"), _named("training.optimizer"), _schedule, _trackers, _data),
)
