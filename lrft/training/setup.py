"""Everything before the first step. Nothing is written into the run's folder here: a mistake leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lrft import data
from lrft.adapters import compose, gradient_checkpointing
from lrft.adapters.attach import attach_adapter, attach_sites, composition_warnings, select_sites
from lrft.adapters.attached import SHARED, Attached
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.ensemble import copying
from lrft.adapters.part import Making
from lrft.adapters.storage import read_adapter
from lrft.data.collate import Form, collate
from lrft.data.sampler import batch_schedule
from lrft.distributed import fsdp, processes, zero2
from lrft.distributed.strategy import Divided, Strategy
from lrft.errors import Problem, RecipeError
from lrft.loading.from_recipe import base_name, load_recipe_model, load_recipe_tokenizer, prepare_data
from lrft.model.compile import compile_blocks
from lrft.model.hub import find_model
from lrft.model.modes import evaluation_mode
from lrft.model.weights import fingerprint
from lrft.objectives.cross_entropy import trained_tokens
from lrft.objectives.packing import find_layout
from lrft.objectives.sft import TokenLoss
from lrft.optim.optimizer import grouped, make_adamw
from lrft.recipe import Recipe
from lrft.runs.folder import RunFolder
from lrft.training import sanity_checks
from lrft.training.checkpoint import resume_point
from lrft.training.find_batch_size import largest_that_fits
from lrft.training.state import Options, Trainer
from lrft.utils import hardware

# Relative difference of the loss between a fresh adapter and the base that rounding may make.
START_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}
START_ROWS = 4


def set_up(recipe: Recipe, options: Options, folder: RunFolder | None = None) -> Trainer:
    """Base, data, adapters, optimiser. Raises LrftError in most of its kinds.

    folder: that of the run to be resumed, on the first process; None for a new run.
    """
    t = recipe.training
    compute = hardware.computation(t.precision)
    zero2.refuse(recipe, processes.world_size())
    dtype = hardware.frozen_dtype(recipe.model.precision, compute)
    source = find_model(recipe.model.name, recipe.model.revision, where=recipe.where("model.name"))
    # Data come before any process group exists: a rank that waited here for another would run into its deadline.
    tokenizer = load_recipe_tokenizer(recipe, source)
    prepared = prepare_data(recipe, source, tokenizer)
    plan = batch_schedule(recipe, prepared.train)
    model = load_recipe_model(recipe, source, dtype)
    accelerator = processes.make_accelerator(compute)
    strategy = divide(recipe, model, accelerator)
    model.to(accelerator.device)
    found = find_layout(model, prepared.train, packing=recipe.data.packing, compute=compute)
    proven = {"packing": found.said} if found.said else {}
    losses = found.loss(model)
    context = calibration_context(
        recipe, prepared.train, plan, accelerator, losses, found.form, together=strategy == "fsdp"
    )
    resumed_from = resume_point(folder, options)
    attached, composition = attach(recipe, model, context, resumed_from)
    losses.copies = copying(model)
    losses.as_base = lambda: sanity_checks.as_base(attached, model)
    if t.gradient_checkpointing != "none":
        gradient_checkpointing.checkpoint(model, t.gradient_checkpointing)
    if t.compile and not compile_blocks(model):
        text = "training.compile: this model has no blocks that transformers knows"
        raise RecipeError([Problem(recipe.where("training.compile"), text)])
    own = make_optimizer(recipe, attached, composition, broadcast)
    warnings = composition_warnings(composition, attached.sites, model)
    warnings += [found.warning] if found.warning else []
    if t.activation_offload and accelerator.device.type == "cpu":
        warnings.append("training.activation_offload moves nothing on a CPU")
    trainer = Trainer(
        recipe=recipe,
        options=options,
        compute=compute,
        base_info={
            "name": base_name(recipe),
            "revision": recipe.model.revision,
            "fingerprint": fingerprint(source),
            "dtype": dtype,
            "quantization": recipe.model.quantization,
        },
        prepared=prepared,
        tokenizer=tokenizer,
        accelerator=accelerator,
        attached=attached,
        composition=composition,
        strategy=share(strategy, recipe, accelerator, losses, own, attached),
        losses=losses,
        layout=found,
        plan=plan,
        warnings=warnings,
        checks=proven,
        folder=folder,
        resumed_from=resumed_from,
        micro=1 if t.micro_batch_size == "auto" else t.micro_batch_size,
    )
    if resumed_from is None:
        compare_start(trainer)
    if t.micro_batch_size == "auto":
        trainer.micro = largest_that_fits(trainer)
    return trainer


def divide(recipe: Recipe, model: Any, accelerator: Accelerator) -> str:
    """The run's strategy. Under fsdp the base is divided over devices here."""
    world, device = accelerator.num_processes, accelerator.device
    if world == 1:
        return "ddp"
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    chosen = fsdp.strategy(recipe.distributed.strategy, weights, hardware.gpu_memory(device))
    if chosen != "fsdp":
        return chosen
    try:
        mesh = fsdp.mesh_over(device.type, world, recipe.distributed.shard_over)
        fsdp.shard(model, mesh)
    except ValueError as error:
        text = f"distributed.strategy: {error}"
        raise RecipeError([Problem(recipe.where("distributed.strategy"), text)]) from None
    return chosen


def share(
    strategy: str,
    recipe: Recipe,
    accelerator: Accelerator,
    losses: TokenLoss,
    own: torch.optim.Optimizer,
    attached: Attached,
) -> Strategy:
    """Model and optimiser as the run's strategy wants them."""
    if strategy == "ddp":
        wrapped, optimizer = accelerator.prepare(losses, own)
        if isinstance(wrapped, DistributedDataParallel):
            # It would send buffers at every step. They are constant, or drawn from the seed: alike in all processes.
            wrapped.broadcast_buffers = False
        return Strategy(accelerator, wrapped, optimizer, attached)
    losses.computing = accelerator.autocast  # what `prepare` does to a model
    if strategy == "zero2":
        return zero2.Zero2(accelerator, losses, own, attached, recipe.training.max_grad_norm)
    fsdp.same_everywhere(attached)
    return Divided(accelerator, losses, accelerator.prepare(own), attached)


def attach(
    recipe: Recipe, model: Any, context: CalibrationContext, resumed_from: Path | None
) -> tuple[Attached, compose.Composition]:
    """The recipe's adapters in `model`: at their start, or of the shapes that a checkpoint has."""
    section, seed = recipe.adapter, recipe.training.seed
    if resumed_from is None:
        return attach_adapter(model, section, seed=seed, where=recipe.where, context=context)
    composition = compose.compose((entry.name, entry.options) for entry in section.method)
    # What was seen of the data before the first step is not looked at again: it is in the checkpoint's ranks.
    if composition.calibrates:
        sites = read_adapter(resumed_from / "adapter").sites
    else:
        sites = select_sites(model, section, composition, recipe.where)
    return attach_sites(model, sites, composition, seed=seed, fresh=False, where=recipe.where), composition


def make_optimizer(
    recipe: Recipe, attached: Attached, composition: compose.Composition, broadcast: Callable[[Tensor], Tensor]
) -> torch.optim.Optimizer:
    """AdamW, or the optimiser of the part that brings one."""
    t, owner = recipe.training, composition.optimizer_owner
    by_site = composition.rates_by_site or owner is not None
    owners = attached.owners() if by_site else None
    groups = grouped(attached.trained(), composition.lr_factors(), t.learning_rate, t.weight_decay, owners=owners)
    if owner is None:
        return make_adamw(groups, t.optimizer)
    ranks = {site.name: site.rank for site in attached.sites}
    ranks[SHARED] = max(ranks.values())
    making = Making(t.optimizer.betas, t.optimizer.eps, t.seed, broadcast)
    return owner.make_optimizer([{**group, "rank": ranks[group["site"]]} for group in groups], making)


def calibration_context(
    recipe: Recipe,
    rows: data.Rows,
    plan: data.BatchSchedule,
    accelerator: Any,
    losses: TokenLoss,
    form: Form,
    *,
    together: bool = False,
) -> CalibrationContext:
    """What parts may look at before adapters exist: the base, and the rows in the order in which they are trained.

    together: a divided base is passed through by all processes at once, so each looks at all rows.
    """
    rank, world = (0, 1) if together else (accelerator.process_index, accelerator.num_processes)
    wanted = recipe.training.micro_batch_size
    micro = 1 if wanted == "auto" else wanted

    def batches(n: int) -> Iterator[dict[str, Tensor]]:
        steps = range(plan.total_steps)
        ids = np.concatenate([plan.rows(step) for step in steps[: math.ceil(n / recipe.training.global_batch_size)]])
        mine = [int(i) for i in ids[:n][rank::world]]
        for at in range(0, len(mine), micro):
            batch = collate(rows, mine[at : at + micro], pad_id=0, form=form)
            yield {name: value.to(accelerator.device) for name, value in batch.items()}

    return CalibrationContext(
        model=losses.model,
        batches=batches,
        loss=losses,
        tokens=trained_tokens,
        reduce=(lambda tensor: tensor) if together else lambda tensor: accelerator.reduce(tensor, reduction="sum"),
        agree=lambda value: broadcast_object_list([value])[0],
        seed=recipe.training.seed,
    )


def compare_start(trainer: Trainer) -> None:
    """Note what the fresh adapter does to the loss of the shortest rows; warn where that is anything unsaid."""
    rows, device = trainer.rows, trainer.accelerator.device
    with evaluation_mode(trainer.losses):
        ids = shortest(rows, START_ROWS) * trainer.losses.copies()
    batch = collate(rows, ids, pad_id=0, form=trainer.layout.form)
    adapted, base_loss = sanity_checks.start_against_base(
        trainer.attached, trainer.losses, {k: v.to(device) for k, v in batch.items()}
    )
    words = f"before the first step the loss is {adapted:.4f}, the base's {base_loss:.4f}"
    same = abs(adapted - base_loss) <= START_TOLERANCE[trainer.compute] * max(abs(base_loss), 1e-3)
    trainer.checks["start"] = words
    if not same and not trainer.composition.init_changes_output:
        trainer.warnings.append(f"the adapter does not start as the base: {words}")


def shortest(rows: data.Rows, n: int) -> list[int]:
    """Ids of the n shortest rows."""
    return [int(i) for i in np.argsort(rows.lengths, kind="stable")[:n]]
