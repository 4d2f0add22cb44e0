"""Load base, adapter and tokenizer of a saved run as in training; every command loads through this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lrft import registry
from lrft.adapters.attached import Attached
from lrft.adapters.ensemble import copying
from lrft.adapters.peft_import import placed, read_any
from lrft.adapters.storage import SavedAdapter, load_saved
from lrft.data import Rows
from lrft.data.format import detect, formats_in_words
from lrft.data.suggest import first_columns
from lrft.errors import UsageError
from lrft.loading.base import base_of, refuse_other_base
from lrft.loading.from_recipe import objective_of
from lrft.model import placement
from lrft.model.head import Head, head_in
from lrft.model.hub import find_model
from lrft.model.load import load_config, load_tokenizer
from lrft.objectives.base import LossModule, Objective, OtherModel, common_layout
from lrft.objectives.packing import Layout, find_layout
from lrft.objectives.sft import Sft
from lrft.recipe import DataSection, Recipe
from lrft.runs.locate import adapter_folder, recipe_of, trusts_remote_code
from lrft.utils.adapter_folders import is_peft_folder
from lrft.utils.hardware import DTYPES, device


def load_as_trained(
    saved: SavedAdapter, folder: Path, *, trust_remote_code: bool = False, widen: bool = False, on_device: bool = True
) -> Any:
    """The base in `folder` as `saved` was trained on it: dtype, quantization, and the attention of its run.

    widen      compute in float32. The codes of a quantised base are made of the weights in the dtype that they were
               trained in; a base that is not quantised is read in float32 to begin with.
    on_device  on the GPU where there is one
    """
    trained_in = DTYPES[saved.info["base"].get("dtype", "float32")]
    recipe = recipe_of(saved.folder)
    dtype = torch.float32 if widen and saved.quantization == "none" else trained_in
    where = placement.RESIDENT
    if on_device:
        wanted = "auto" if recipe is None else recipe.model.placement
        where = placement.chosen(wanted, folder, device(), dtype=dtype, quantization=saved.quantization)
    model: Any = placement.load_for(
        where,
        folder,
        dtype=dtype,
        quantization=saved.quantization,
        attention="auto" if recipe is None else recipe.model.attention,
        trust_remote_code=trust_remote_code,
        head=saved.head,
        added=saved.added,
    )
    if widen and saved.quantization != "none":
        model = model.float()
    return placement.place(model, where, device(), dtype) if on_device else model


def load_plain(
    folder: Path,
    *,
    trust_remote_code: bool = False,
    head: Head | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """A model folder by itself, on the GPU where there is one. head: None for the one of its files."""
    head = head or head_in(folder, load_config(folder, trust_remote_code))
    where = placement.chosen("auto", folder, device(), dtype=dtype)
    model: Any = placement.load_for(where, folder, dtype=dtype, trust_remote_code=trust_remote_code, head=head)
    return placement.place(model, where, device(), dtype)


@dataclass(frozen=True)
class Target:
    """Loaded target of `lrft eval`: a run, an adapter or a model."""

    model: Any
    tokenizer: Any
    folder: Path
    """the base's"""
    attached: Attached | None
    """handle on the adapters; None for a plain model"""
    section: DataSection | None
    """the data section of the run's recipe"""
    objective: Objective
    """the run's; for what is no run, what its head is for"""
    recipe: Recipe | None = None
    """the run's"""
    head: Head | None = None
    """None for a language model"""


def load_target(target: str, base_model: str | None, trusted: bool) -> Target:
    """A run (its best adapter), an adapter folder, or a model by its folder or name.

    trusted: code that the model brings along may be executed. A run's own recipe can say so too.
    """
    path = Path(target)
    if (path / "run.json").is_file() or (path / "lrft.json").is_file() or is_peft_folder(path):
        adapter = adapter_folder(path)
        saved = read_any(adapter)
        folder = base_of(saved, base_model)
        refuse_other_base(saved, folder, accepted=False)
        trusted = trusted or trusts_remote_code(adapter)
        base = load_as_trained(saved, folder, trust_remote_code=trusted)
        attached = load_saved(base, placed(saved, base))
        recipe = recipe_of(adapter)
        section = None if recipe is None else recipe.data
        own = (adapter / "tokenizer_config.json").is_file()
        objective = objective_for(saved.head) if recipe is None else objective_of(recipe)
        tokenizer = load_tokenizer(adapter if own else folder, trusted)
        return Target(base, tokenizer, folder, attached, section, objective, recipe, saved.head)
    if base_model:
        raise UsageError(f"--base is only for a run or an adapter; {target} is a full model")
    folder = find_model(target, where="the model")
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    head = head_in(folder, load_config(folder, trusted))
    model = load_plain(folder, trust_remote_code=trusted, head=head, dtype=dtype)
    return Target(model, load_tokenizer(folder, trusted), folder, None, None, objective_for(head), head=head)


def objective_for(head: Head | None) -> Objective:
    """What a model is evaluated by that is no run's: the next-token loss, or what trains its kind of head on rows that
    are answered as a whole. Raises UsageError where there is none."""
    if head is None:
        return Sft()
    for objective in objectives_of(head):
        if registry.ROWS[kind_of_rows(objective)].whole:
            return objective
    raise UsageError(f"no objective evaluates a model with a head for {head.kind} classification")


def objective_on(head: Head, path: str, reading: Mapping[str, str]) -> Objective:
    """What evaluates a model that is no run's on the rows of a file, by their columns: a head that gives one number may
    have been trained on numbers, or on pairs of answers. reading: keys of an entry of data.train, which come first.

    Raises UsageError for rows that no objective for this kind of head takes.
    """
    columns, given, own = first_columns(path), reading.get("format"), objective_for(head)
    if "columns" in reading or (columns is None and given is None):
        return own
    candidates = [own, *(each for each in objectives_of(head) if each.name != own.name)]
    for objective in candidates:
        kind = kind_of_rows(objective)
        if given in registry.ROWS[kind].formats or (given is None and detect(columns or (), kind)):
            return objective
    ways = "; ".join(dict.fromkeys(formats_in_words(kind_of_rows(each)) for each in candidates))
    found = f"format {given}" if given else f"the columns {', '.join(columns or ())}"
    text = f"{path}: {found}, but the model answers with {head.outputs_in_words}"
    raise UsageError(text, f"Rows for it: {ways}. --columns renames theirs.")


def objectives_of(head: Head) -> list[Objective]:
    """Those that train this kind of head, with the options that fit it."""
    cards = registry.declared("objectives").items()
    return [card.load().of_head(head) for name, card in cards if registry.head_of(name) == head.kind]


def kind_of_rows(objective: Objective) -> str:
    return registry.rows_of(objective.name, vars(objective))


def answering(
    model: Any,
    rows: Rows,
    objective: Objective | None = None,
    attached: Attached | None = None,
    others: Mapping[str, OtherModel] | None = None,
    head: Head | None = None,
) -> tuple[LossModule, Layout]:
    """(what answers batches of `rows` with their loss, how they share a batch), for evaluation.

    objective: None is supervised fine-tuning. attached: for an objective that asks the base too. others: for one whose
    options name models, of `lrft.loading.others`. head: the model's.
    """
    layout = find_layout(model, rows, packing="auto") if head is None else Layout()
    losses = (objective or Sft()).module(model, direct=layout.direct)
    losses.others = others or {}
    layout = common_layout(layout, losses.others.values(), packing="auto")
    if losses.mixes_copies:
        losses.copies = copying(model)
    losses.head = head
    if attached is not None:
        losses.as_base = lambda: attached.as_base(model)
    return losses, layout
