"""Several adapters over one loaded base: one at a time is in the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lrft.adapters.ensemble import copying
from lrft.adapters.modules_to_save import unwrapped
from lrft.adapters.peft_import import placed, read_any
from lrft.adapters.storage import SavedAdapter, load_saved
from lrft.data.prompts import Asking
from lrft.errors import UsageError
from lrft.evaluation.generate import stop_tokens
from lrft.loading.base import base_of, refuse_other_base
from lrft.loading.saved import load_as_trained
from lrft.model.experts import unstack_for
from lrft.model.load import load_tokenizer
from lrft.runs.locate import adapter_folder, recipe_of, run_of, trusts_remote_code
from lrft.serving.answerer import Answerer
from lrft.serving.load import Trained, load, refuse_head, was_plain

BASE = "base"


def named_by_folder(targets: Sequence[str]) -> dict[str, str]:
    """The targets by the names of their folders. Raises UsageError for two of one name."""
    named = {name_of(target): target for target in targets}
    if len(named) < len(targets) or BASE in named:
        raise UsageError(f"the names must differ, also from {BASE}: {', '.join(map(name_of, targets))}")
    return named


def load_shelf(
    named: Mapping[str, str], base_model: str | None = None, trusted: bool = False, put: str | None = None
) -> dict[str, Trained]:
    """What answers under each name: the base, and the adapters of runs or folders by theirs; or one plain model.

    put: chat or text, how a prompt of plain text is put; None: as each run's rows were. Raises UsageError for adapters
    of different bases.
    """
    folders = {name: folder for name, target in named.items() if (folder := adapter_at(target)) is not None}
    if len(named) == 1 and not folders:
        return {name: load(target, base_model, trusted, put) for name, target in named.items()}
    if missing := named.keys() - folders.keys():
        raise UsageError(f"{named[missing.pop()]} is neither a run nor an adapter", "A plain model is served alone.")
    saved = {name: read_any(folder) for name, folder in folders.items()}
    first = next(iter(saved.values()))
    source = base_of(first, base_model)
    for other in saved.values():
        refuse_head(other.folder, other.head)
        refuse_different(first, other)
        refuse_other_base(other, source, accepted=False)
    trusted = trusted or all(trusts_remote_code(folder) for folder in folders.values())
    model = load_as_trained(first, source, trust_remote_code=trusted)
    shelf = {BASE: plain(model, source, trusted, put)}
    return shelf | {name: adapted(model, source, one, named[name], trusted, put) for name, one in saved.items()}


def name_of(target: str) -> str:
    """The run's folder, or the adapter's or the model's own."""
    path = Path(target).resolve() if Path(target).is_dir() else Path(target)
    run = run_of(path) if Path(target).is_dir() else None
    return (run or path).name


def adapter_at(target: str) -> Path | None:
    path = Path(target)
    try:
        return adapter_folder(path) if path.is_dir() else None
    except UsageError:
        return None


def refuse_different(one: SavedAdapter, other: SavedAdapter) -> None:
    """Raises UsageError unless both were trained on the same base, stored alike."""
    for key in ("fingerprint", "dtype", "quantization", "added_tokens"):
        if one.info["base"].get(key) != other.info["base"].get(key):
            raise UsageError(
                f"{one.folder} and {other.folder} were trained on different bases (their {key} differs)",
                "Adapters that are served together share one base.",
            )


def plain(model: Any, source: Path, trusted: bool, put: str | None = None) -> Trained:
    """The base by itself."""
    tokenizer = load_tokenizer(source, trusted)
    asking = Asking(tokenizer, plain=put == "text")
    ends = tuple(stop_tokens(model, tokenizer))
    return Trained(tokenizer, source, None, asking, Answerer(model, tokenizer, ends).ending(*asking.ends), {})


def adapted(
    model: Any, source: Path, saved: SavedAdapter, target: str, trusted: bool, put: str | None = None
) -> Trained:
    """An adapter, read, and set aside: `model` is the plain base again."""
    own = (saved.folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(saved.folder if own else source, trusted)
    stops = model.generation_config.eos_token_id
    attached = load_saved(model, placed(saved, model))
    ends = tuple(stop_tokens(model, tokenizer))
    model.generation_config.eos_token_id = stops  # what this adapter ends with is not what the others end with
    layers, copies = attached.wrappers(), copying(model)
    attached.detach()
    unstack_for(model, attached.modules)
    recipe = recipe_of(saved.folder)
    options = {} if recipe is None else dict(recipe.data.template_options)
    asking = Asking(tokenizer, plain=was_plain(target) if put is None else put == "text", options=options)
    answerer = Answerer(model, tokenizer, ends, copies, partial(in_model, model, layers)).ending(*asking.ends)
    return Trained(tokenizer, source, None, asking, answerer, options)


@contextmanager
def in_model(model: Any, layers: Mapping[str, Any]) -> Iterator[None]:
    """Inside, the model has these layers in the place of the base's."""
    places = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in layers}
    try:
        for name, (parent, word) in places.items():
            setattr(parent, word, layers[name])
        yield
    finally:
        for name, (parent, word) in places.items():
            setattr(parent, word, unwrapped(layers[name]))
