"""Phase 2 of a run's set-up: the frozen model on its device, whole, streamed or divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from lrft.adapters import compose, targets
from lrft.adapters.attach import prune_base
from lrft.distributed import fsdp, processes
from lrft.distributed.accelerator import make_accelerator
from lrft.errors import Problem, RecipeError
from lrft.export.merge_places import names_in
from lrft.loading.from_recipe import (
    added_by,
    base_name,
    load_recipe_model,
)
from lrft.model import kernels, placement
from lrft.model.conversion import DEQUANTIZED_FROM, recorded
from lrft.model.head import Head, head_modules
from lrft.model.stored import Stored
from lrft.model.weights import fingerprint, weight_files
from lrft.recipe import Recipe
from lrft.training.state import Base
from lrft.utils import hardware


def load_base(recipe: Recipe, source: Path, compute: str, head: Head | None) -> Base:
    """Phase 2: the frozen model on its device; sharded here under fsdp. head: in the place of the language model's."""
    dtype, added = hardware.frozen_dtype(recipe.model.precision, compute), added_by(recipe, source)
    where = placement_of(recipe, source, dtype)
    composition = compose.compose_section(recipe.adapter)
    # A base that is pruned is pruned in the dtype in which it trains.
    read = placement.RESIDENT if any("base" in part.slots for part in composition.parts) else where
    model = load_recipe_model(recipe, source, dtype, head, read)
    # Asked while the modules have the names and classes that transformers knows.
    stored = Stored(model, names_in(weight_files(source)))
    prune_base(model, composition, recipe.where)  # before any device holds it
    accelerator = make_accelerator(compute)
    fused = use_kernels(recipe, model, accelerator.device.type)
    strategy = divide(recipe, model, accelerator)
    try:
        placement.place(model, where, accelerator.device, hardware.DTYPES[dtype])
    except ValueError as error:
        text = f"model.placement: {error}"
        raise RecipeError([Problem(recipe.where("model.placement"), text)]) from None
    info = {
        "name": base_name(recipe),
        "revision": recipe.model.revision,
        "fingerprint": fingerprint(source),
        "dtype": dtype,
        "quantization": recipe.model.quantization,
        **{key: fact for key, fact in recorded(source).items() if key == DEQUANTIZED_FROM},
        **({} if head is None else {"head": head.to_dict()}),
        **({} if added is None else {"added_tokens": added.to_dict()}),
    }
    return Base(model, accelerator, compute, strategy, info, stored, where, fused)


def use_kernels(recipe: Recipe, model: Any, device: str) -> int:
    """How many modules compute with the kernels of `training.kernels`. Raises RecipeError where it asks for some that
    do not run here, or that the model has no use for."""
    wanted = recipe.training.kernels
    there = device == "cuda" and kernels.is_installed() and not recipe.training.compile
    if wanted == "none" or (wanted == "auto" and not there):
        return 0
    problem = f"{wanted} runs on a GPU, and there is none here" if device != "cuda" else ""
    made = 0 if problem else kernels.use_liger(model)
    if not (made or problem or wanted == "auto"):
        problem = f"liger-kernel has none for {model.config.model_type}"
    if problem:
        text = f"training.kernels: {problem}. auto does without"
        raise RecipeError([Problem(recipe.where("training.kernels"), text)])
    return made


def placement_of(recipe: Recipe, source: Path, dtype: str) -> str:
    """resident or streamed. Raises RecipeError for several processes: each would copy all blocks for itself.

    auto does not stream what is compiled, or divided over several devices.
    """
    wanted, world = recipe.model.placement, processes.world_size()
    if world > 1 and wanted == placement.STREAMED:
        text = f"model.placement: streamed trains on one device, and {world} processes were started"
        remedy = "Start one, or divide the base with distributed.strategy: fsdp"
        raise RecipeError([Problem(recipe.where("model.placement"), f"{text}. {remedy}")])
    if wanted == "auto" and (world > 1 or recipe.training.compile):
        return placement.RESIDENT
    kind = recipe.model.quantization
    return placement.chosen(wanted, source, hardware.device(), dtype=hardware.DTYPES[dtype], quantization=kind)


def divide(recipe: Recipe, model: Any, accelerator: Accelerator) -> str:
    """The run's strategy. Under fsdp the base is divided over devices here."""
    world, device = accelerator.num_processes, accelerator.device
    if world == 1:
        return "ddp"
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    chosen = fsdp.strategy(recipe.distributed.strategy, weights, hardware.gpu_memory(device))
    if chosen != "fsdp":
        return chosen
    a = recipe.adapter
    beside = {"modules_to_save": a.modules_to_save, "train_tokens": a.train_tokens, "norms": a.norms}
    used = [key for key, value in {**beside, "biases": a.biases != "none"}.items() if value]
    if used:
        text = f"adapter.{used[0]} does not go with distributed.strategy: fsdp, which the size of the base chose"
        raise RecipeError([Problem(recipe.where(f"adapter.{used[0]}"), f"{text}. Use ddp or zero2")])
    if targets.meant_stacks(model, a):
        text = "adapter.target_modules: adapters on stacked experts do not go with distributed.strategy: fsdp"
        raise RecipeError([Problem(recipe.where("adapter.target_modules"), f"{text}. Use ddp or zero2")])
    if head_modules(model):
        text = f"distributed.strategy: fsdp does not train a head ({recipe.training.objective.name}); use ddp or zero2"
        raise RecipeError([Problem(recipe.where("distributed.strategy"), text)])
    try:
        mesh = fsdp.mesh_over(device.type, world, recipe.distributed.shard_over)
        fsdp.shard(model, mesh)
    except ValueError as error:
        text = f"distributed.strategy: {error}"
        raise RecipeError([Problem(recipe.where("distributed.strategy"), text)]) from None
    return chosen
