"""The models that an objective's options name, and the adapter that a run starts from: found, compared with the base,
loaded to answer beside it.

A name is that of a model (folder or hub id), or of a run or adapter folder over the recipe's own base. An adapter is
switched on in the base where it is to answer, so that one base serves both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from lrft import registry
from lrft.adapters import beside
from lrft.adapters.adapter import Adapter, AdapterLinear, load_tensors
from lrft.adapters.modules_to_save import unwrapped
from lrft.adapters.peft_import import is_peft_folder, placed, read_any
from lrft.adapters.storage import SavedAdapter, refuse_other_modules
from lrft.data import Rows
from lrft.errors import CheckFailed, Problem, RecipeError
from lrft.loading.from_recipe import added_by, objective_of
from lrft.loading.saved import Target, adapter_folder
from lrft.model import linear
from lrft.model.hub import find_model
from lrft.model.load import embedding_rows, load_config, load_model, load_tokenizer, position_limit
from lrft.model.quantized import count
from lrft.model.weights import fingerprint
from lrft.objectives.base import START, OtherModel
from lrft.objectives.packing import Layout, find_layout
from lrft.recipe import Recipe
from lrft.utils import files, hardware
from lrft.utils.text import amount


@dataclass(frozen=True)
class Found:
    """What an option names, read as far as it can be without weights of a model."""

    option: str
    key: str
    """of the recipe, for messages"""
    name: str
    """as the recipe writes it"""
    folder: Path
    """of a model"""
    fingerprint: str
    saved: SavedAdapter | None
    """an adapter over the recipe's base"""
    is_base: bool
    """nothing but the recipe's base has to be loaded"""


def find_others(recipe: Recipe, source: Path, tokenizer: Any, rows: Rows, *, trained: bool = False) -> list[Found]:
    """`locate_others`. Raises RecipeError besides, for a model that cannot answer rows of the base's tokenizer.

    trained: the run has been trained, so what it started from is asked for only where that is its reference.
    """
    found = locate_others(recipe, source, starting=not trained or objective_of(recipe).referenced)
    for each in found:
        if not each.is_base:
            refuse_unfit(recipe, each, source, tokenizer, rows)
    return found


def locate_others(recipe: Recipe, source: Path, *, starting: bool = True) -> list[Found]:
    """What the options of the recipe's objective name, and, when `starting`, the adapter that it starts from.

    source: the base's folder.

    Raises MissingError for a model that is not there, RecipeError for an adapter over another base, and what reading an
    adapter raises.
    """
    named = recipe.training.objective
    found = []
    for option in registry.declared("objectives")[named.name].models:
        name, key = named.options[option], f"training.objective.options.{option}"
        found.append(find_adapter(recipe, key, name, source) or find_full(recipe, key, name, source))
    start = find_start(recipe, source) if starting else None
    return found if start is None else [*found, start]


def find_start(recipe: Recipe, source: Path) -> Found | None:
    """The adapter that the recipe starts from, with its base compared. Raises RecipeError where it is none."""
    name = recipe.adapter.start_from
    if name is None:
        return None
    key = "adapter.start_from"
    found = find_adapter(recipe, key, name, source)
    if found is None:
        there = "is neither a run nor an adapter folder" if Path(name).expanduser().exists() else "does not exist"
        refuse(recipe, key, f"{name} {there}")
    return replace(found, option=START)


def find_adapter(recipe: Recipe, key: str, name: str, source: Path) -> Found | None:
    """None where `name` is no folder of a run or an adapter."""
    path = Path(name).expanduser()
    if not ((path / "run.json").is_file() or (path / "lrft.json").is_file() or is_peft_folder(path)):
        return None
    folder = adapter_folder(path)
    saved = read_any(folder)
    trained_on, here = saved.info["base"].get("fingerprint"), fingerprint(source)
    merge = "Merge it with lrft merge, and name the merged folder"
    if trained_on and trained_on != here:
        refuse(
            recipe,
            key,
            f"{name} is an adapter over a base with fingerprint {trained_on[:16]}, and model.name has {here[:16]}. "
            f"{merge}",
        )
    if saved.quantization != recipe.model.quantization:
        refuse(
            recipe,
            key,
            f"{name} was trained with model.quantization: {saved.quantization}, and this recipe has "
            f"{recipe.model.quantization}. {merge}",
        )
    mine, its = added_by(recipe, source), saved.added
    if (mine and mine.ids) != (its and its.ids):
        said = f"{', '.join(its.ids)}" if its else "none"
        refuse(recipe, key, f"{name} was trained with other new tokens ({said}): give model.add_tokens the same")
    if any("copies" in registry.methods()[entry["name"]].slots for entry in saved.info["methods"]):
        refuse(recipe, key, f"{name} averages several predictions, which is not supported here")
    digest = hashlib.sha256("".join(map(files.sha256, sorted(folder.glob("*.safetensors")))).encode()).hexdigest()
    return Found(key.rsplit(".", 1)[-1], key, recipe.masked(name), source, digest, saved, is_base=True)


def find_full(recipe: Recipe, key: str, name: str, source: Path) -> Found:
    """A model. The recipe's own base is not loaded a second time, unless it is quantised here."""
    folder = find_model(name, where=f"{_place(recipe, key)}  {_written(recipe, key)}")
    made_of = fingerprint(folder)
    same = made_of == fingerprint(source) and recipe.model.quantization == "none"
    return Found(key.rsplit(".", 1)[-1], key, recipe.masked(name), folder, made_of, None, is_base=same)


def refuse_unfit(recipe: Recipe, found: Found, source: Path, tokenizer: Any, rows: Rows) -> None:
    """Raises RecipeError for a model with another vocabulary, or too few positions for the rows.

    The vocabularies are compared token by token. Of the same tokens a model may have more rows in its head than they
    need, as members of one family do: those belong to no token, and are left out where two models are compared.
    """
    trusted = recipe.model.trust_remote_code
    own, its = tokenizer.get_vocab(), load_tokenizer(found.folder, trusted).get_vocab()
    config = load_config(found.folder, trusted)
    sizes = [embedding_rows(load_config(source, trusted)), embedding_rows(config)]
    if own != its:
        differing = sorted(token for token in own.keys() | its.keys() if own.get(token) != its.get(token))
        refuse(
            recipe,
            found.key,
            f"{found.name} has another vocabulary than model.name: {len(its):,} and {len(own):,} tokens, of which "
            f"{len(differing):,} differ, such as {', '.join(map(repr, differing[:3]))}. Its logits cannot be compared "
            f"token by token: use a model of the same tokenizer",
        )
    most = max(own.values(), default=0)
    for who, size in zip(("model.name", found.name), sizes, strict=True):
        if size is not None and size <= most:
            refuse(recipe, found.key, f"{who} has logits for {size:,} tokens, and the vocabulary goes up to {most:,}")
    limit, longest = position_limit(config), int(rows.lengths.max())
    if limit is not None and longest > limit:
        refuse(
            recipe,
            found.key,
            f"{found.name} has {limit:,} positions, and the longest row has {longest:,} tokens: set "
            f"data.max_length: {limit}",
        )


def refuse(recipe: Recipe, key: str, text: str) -> NoReturn:
    """Raises RecipeError at the option, or where the objective was named."""
    raise RecipeError([Problem(_place(recipe, key), f"{_written(recipe, key)}: {recipe.masked(text)}")])


def _place(recipe: Recipe, key: str) -> str:
    return recipe.where(key) if recipe.where(key) != "default" else recipe.where("training.objective.name")


def _written(recipe: Recipe, key: str) -> str:
    """The option's key as an argument names it: training.objective.distill.teacher."""
    return key.replace(".options.", f".{recipe.training.objective.name}.")


def load_others(recipe: Recipe, found: Sequence[Found], base: Any, compute: str, rows: Rows) -> dict[str, OtherModel]:
    """The same, able to answer: frozen, on the device of `base` and in the precision of its frozen weights.

    base: the loaded model of the recipe, which may have adapters.
    """
    return {each.option: loaded(recipe, each, base, compute, rows) for each in found}


def others_of(target: Target, rows: Rows) -> dict[str, OtherModel]:
    """Those of the run that `target` is of, to measure its `rows`; {} for what is no run. Raises as `find_others`."""
    recipe = target.recipe
    if recipe is None:
        return {}
    found = find_others(recipe, target.folder, target.tokenizer, rows, trained=True)
    compute = hardware.computation(recipe.training.precision)
    return load_others(recipe, found, target.model, compute, rows)


def loaded(recipe: Recipe, found: Found, base: Any, compute: str, rows: Rows) -> OtherModel:
    if found.saved is not None:
        around = partial(switched, base, layers_of(base, found.saved))
        said = f"{found.name}   on the same base"
        return OtherModel(base, Layout(), True, around, _written(recipe, found.key), found.fingerprint, said)
    if found.is_base:
        said = f"{found.name}   the base itself"
        return OtherModel(base, Layout(), True, nullcontext, _written(recipe, found.key), found.fingerprint, said)
    dtype = hardware.frozen_dtype(recipe.model.precision, compute)
    model: Any = load_model(
        found.folder,
        dtype=hardware.DTYPES[dtype],
        attention=recipe.model.attention,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    model.to(base.device)
    layout = find_layout(model, rows, packing=recipe.data.packing, compute=compute)
    said = f"{found.name}   {amount(count(model))} parameters, frozen in {dtype}"
    return OtherModel(model, layout, False, nullcontext, _written(recipe, found.key), found.fingerprint, said)


def layers_of(base: Any, saved: SavedAdapter) -> dict[str, nn.Module]:
    """name -> the base's layer with the saved adapter, and what else it trained, in evaluation mode and frozen. The
    model may have adapters.

    Raises CheckFailed where they do not fit: a folder of PEFT does not know its base.
    """
    modules = dict(base.named_modules())
    saved = placed(saved, base)
    made: dict[str, AdapterLinear] = {}
    for site in saved.sites:
        layer = modules.get(site.name)
        layer = None if layer is None else unwrapped(layer)
        if layer is None or not linear.is_linear(layer) or linear.shape(layer) != (site.d, site.k):
            raise CheckFailed(f"{saved.folder}: this model has no linear layer {site.name} of {site.d} x {site.k}")
        adapter: Adapter = saved.build(site).requires_grad_(False)
        made[site.name] = AdapterLinear(layer, adapter.to(next(layer.parameters()).device)).eval()
    refuse_other_modules(base, saved)
    put = beside.make(base, saved.beside, made)
    for place, module in put.by_place.items():
        load_tensors(place, dict(module.named_parameters()), saved.tensors[place])
    found = {**made, **put.wrappers}
    return {name: module.requires_grad_(False).eval() for name, module in found.items()}


@contextmanager
def switched(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, `layers` stand in the places of the model's own, which may have adapters by now."""
    before = {name: model.get_submodule(name) for name in layers}
    try:
        put(model, layers)
        yield
    finally:
        put(model, before)


def put(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        parent, _, word = name.rpartition(".")
        setattr(model.get_submodule(parent), word, layer)
