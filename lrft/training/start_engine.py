"""Phase 4 of a run's set-up: blocks checkpointed and compiled, the optimiser, and the strategy around both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from accelerate.utils import broadcast
from torch.nn.parallel import DistributedDataParallel

from lrft.adapters import gradient_checkpointing
from lrft.adapters.ensemble import copying
from lrft.distributed import arriving, fsdp, zero2
from lrft.distributed.strategy import Divided, Strategy
from lrft.errors import Problem, RecipeError
from lrft.evaluation.generate import pad_token
from lrft.loading.from_recipe import (
    made,
)
from lrft.model.compile import compile_blocks
from lrft.objectives.base import LossModule, Objective
from lrft.objectives.neftune import add_noise
from lrft.objectives.packing import Layout
from lrft.recipe import Recipe
from lrft.recipe.schema import default_of
from lrft.training.engine import Engine
from lrft.training.optimizer import make_optimizer
from lrft.training.state import Adapted, Base, Inputs


def start_engine(
    recipe: Recipe,
    inputs: Inputs,
    base: Base,
    adapted: Adapted,
    objective: Objective,
    losses: LossModule,
    layout: Layout,
) -> Engine:
    """Phase 4: checkpointing and compilation of the blocks, the optimiser, and the strategy around both."""
    t, model = recipe.training, base.model
    if adapted.composition.looks_at_outputs and not losses.adds_extra:
        names = [part.name for part in adapted.composition.parts if part.looks_at_outputs]
        refuse_beside(recipe, names, "adds to the loss")
    if not losses.mixes_copies and (names := [p.name for p in adapted.composition.parts if "copies" in p.slots]):
        refuse_beside(recipe, names, "answers in copies")
    if losses.mixes_copies:
        losses.copies = copying(model)
    losses.as_base = lambda: adapted.attached.as_base(model)
    if t.gradient_checkpointing != "none":
        checkpoint_blocks(recipe, model)
    if t.compile and not compile_blocks(model):
        text = "training.compile: transformers declares no blocks for this model"
        raise RecipeError([Problem(recipe.where("training.compile"), text)])
    if t.neftune_alpha:
        add_noise(losses, t.neftune_alpha)
    optimizer = make_optimizer(recipe, adapted.attached, adapted.composition, broadcast)
    return Engine(
        accelerator=base.accelerator,
        objective=objective,
        losses=losses,
        strategy=wrap_for_strategy(base, losses, optimizer, adapted, t.max_grad_norm),
        layout=layout,
        pad_id=pad_token(inputs.tokenizer),
        micro=1 if t.micro_batch_size == "auto" else t.micro_batch_size,
        tokens=None if t.micro_batch_tokens == "auto" else t.micro_batch_tokens,
        offload=t.activation_offload,
        averaged=partial(made(t.optimizer, "optimizers").averaged, optimizer),
    )


def refuse_beside(recipe: Recipe, names: Sequence[str], does: str) -> NoReturn:
    """Raises RecipeError for methods that the objective has no place for."""
    objective, usual = recipe.training.objective.name, default_of("objective").name
    text = f"{' '.join(names)} {does}, which training.objective: {objective} does not take up"
    remedy = f"Take {' and '.join(names)} out, or train with {usual}"
    raise RecipeError([Problem(recipe.where("adapter.method"), f"adapter.method: {text}. {remedy}")])


def checkpoint_blocks(recipe: Recipe, model: Any) -> None:
    """Raises RecipeError for a model that cannot compute its blocks again, as one of its own code may be."""
    try:
        gradient_checkpointing.checkpoint(model, recipe.training.gradient_checkpointing)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        text = f"training.gradient_checkpointing: {type(model).__name__} does not support it ({error}); set it to none"
        raise RecipeError([Problem(recipe.where("training.gradient_checkpointing"), text)]) from error


def wrap_for_strategy(
    base: Base, losses: LossModule, own: torch.optim.Optimizer, adapted: Adapted, max_grad_norm: float | None
) -> Strategy:
    """Wrap model and optimiser for the run's strategy."""
    accelerator, attached = base.accelerator, adapted.attached
    owner = adapted.composition.optimizer_owner
    if owner is not None and owner.gradients_taken:
        wrapped, optimizer = accelerator.prepare(losses, own)
        return arriving.Arriving(accelerator, wrapped, optimizer, attached)
    if base.strategy == "ddp":
        wrapped, optimizer = accelerator.prepare(losses, own)
        if isinstance(wrapped, DistributedDataParallel):
            # It would send buffers at every step. They are constant, or drawn from the seed: alike in all processes.
            wrapped.broadcast_buffers = False
        return Strategy(accelerator, wrapped, optimizer, attached)
    losses.computing = accelerator.autocast  # what `prepare` does to a model
    if base.strategy == "zero2":
        return zero2.Zero2(accelerator, losses, own, attached, max_grad_norm)
    fsdp.same_everywhere(attached)
    return Divided(accelerator, losses, accelerator.prepare(own), attached)
