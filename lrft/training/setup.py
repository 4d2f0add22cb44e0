"""Set-up of a run in four phases: inputs, base, adapters, engine.

Nothing is written to the run folder here, so a failed set-up leaves no files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from lrft import data
from lrft.adapters import compose, targets
from lrft.adapters.adapter import Site
from lrft.adapters.attach import (
    attach_adapter,
    attach_sites,
    composed_with,
    composition_warnings,
    rows_warnings,
    select_sites,
)
from lrft.adapters.attached import Attached
from lrft.adapters.beside import names_for, token_ids, untrained_rows
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.peft_import import placed
from lrft.adapters.reach import reach
from lrft.adapters.shared_input import share_inputs
from lrft.adapters.start_from import start_from
from lrft.adapters.storage import read_adapter
from lrft.data.sampler import auxiliary_schedule, batch_schedule
from lrft.distributed import arriving, processes, zero2
from lrft.errors import Problem, RecipeError
from lrft.evaluation.generate import pad_token
from lrft.export.merge import unmergeable
from lrft.loading.from_recipe import (
    find_base,
    head_for,
    load_data,
    load_sets,
    objective_of,
)
from lrft.loading.metrics import Metrics, figures_of, metrics_of
from lrft.loading.no_effect import refuse_without_effect
from lrft.loading.optimizer import rate_hint, refuse_optimizer
from lrft.loading.others import find_others, load_others
from lrft.loading.pass_size import finds_tokens
from lrft.model.end_tokens import add_stops
from lrft.model.modes import evaluation_mode
from lrft.model.weights import weight_files
from lrft.objectives.base import START, LossModule, Objective, common_layout
from lrft.objectives.packing import Layout, find_layout
from lrft.objectives.shared_prompt import sharing
from lrft.objectives.to_device import to_device
from lrft.recipe import Recipe
from lrft.runs.folder import RunFolder
from lrft.training import sanity_checks, sources
from lrft.training.after import refuse_impossible
from lrft.training.base_model import load_base
from lrft.training.checkpoint import resume_point
from lrft.training.constants import with_constants
from lrft.training.engine import Engine
from lrft.training.find_batch_size import largest_that_fits, most_tokens_that_fit
from lrft.training.start_engine import start_engine
from lrft.training.state import Adapted, Base, Inputs, Notes, Options, Session
from lrft.utils import hardware
from lrft.utils.slow import telling
from lrft.utils.text import count

# Relative difference of the loss between a fresh adapter and the base that rounding may make.
INIT_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}
INIT_ROWS = 4


def set_up(recipe: Recipe, options: Options, folder: RunFolder | None = None) -> Session:
    """Set up base, data, adapters and optimiser. Raises most subclasses of LrftError.

    folder: folder of the run to resume, on the first process; None for a new run.
    """
    notes = Notes()
    compute = hardware.computation(recipe.training.precision)
    zero2.refuse(recipe, processes.world_size())
    arriving.refuse(recipe, processes.world_size())
    refuse_optimizer(recipe, torch.cuda.is_available())
    notes.warnings += rate_hint(recipe)
    # Data come before any process group exists: a rank that waited here for another would run into its deadline.
    metrics = metrics_of(recipe, allow_code=options.allow_code)
    tell = partial(telling, silent=options.quiet or processes.rank() != 0)
    with tell("reading and tokenising the rows"):
        inputs = load_inputs(recipe, metrics)
    head = head_for(recipe, inputs.prepared, inputs.tokenizer, inputs.source)
    with tell("loading the base model"):
        base = load_base(recipe, inputs.source, compute, head)
    # Generation stops at the tokens that are trained to end a turn, whatever the base stops at.
    add_stops(base.model, inputs.tokenizer.convert_tokens_to_ids(inputs.prepared.report.end_tokens))
    objective = objective_of(recipe)
    packing = recipe.data.packing
    layout = Layout() if head else find_layout(base.model, inputs.train, packing=packing, compute=compute)
    losses = objective.module(base.model, direct=layout.direct)
    losses.head = head
    losses.others = load_others(recipe, inputs.others, base.model, compute, inputs.train)
    layout = common_layout(layout, losses.others.values(), packing=recipe.data.packing)
    losses.wanted = figures_of(recipe, objective, losses, metrics.of_rows)
    losses.sources = sources.losses_of(recipe) if losses.tells_sources else ()
    context = calibration_context(recipe, inputs, base, objective, losses, layout)
    # Behind calibration, which looks at labels; and neftune's noise is scaled by the length of a row.
    whole_rows = compose.compose_section(recipe.adapter).whole_rows
    if objective.shares_prompts and not recipe.training.neftune_alpha and not whole_rows:
        layout = sharing(base.model, inputs.train, layout, compute)
    with tell("initialising the adapters"):
        adapted = adapt(recipe, inputs, base, context, resume_point(folder, options))
    refuse_impossible(recipe, adapted)
    engine = start_engine(recipe, inputs, base, adapted, objective, losses, layout)
    with tell("asking the reference about all rows"):
        inputs = with_constants(recipe, inputs, base, engine)
    notes.checks |= losses.checks()
    note_composition(recipe, base, adapted, layout, notes)
    notes.warnings += rows_warnings(adapted.composition, inputs.train, recipe.where)
    if repeated := inputs.prepared.report.repeated:
        text = f"{count(repeated, 'validation row')} also in the training rows, so the validation loss flatters the run"
        notes.warnings.append(f"{text}; lrft data lists them")
    if inputs.auxiliary is not None:
        notes.checks["auxiliary rows"] = f"{len(inputs.auxiliary):,} beside the {len(inputs.train):,} to train on"
    session = Session(recipe, options, inputs, base, adapted, engine, notes, folder=folder)
    if adapted.resumed_from is None:
        compare_init(engine, inputs.train, adapted, base.compute, notes)
    sets = [rows for rows in (inputs.train, inputs.auxiliary) if rows is not None]
    if recipe.training.micro_batch_size == "auto":
        engine.micro = largest_that_fits(engine, sets, recipe.training.global_batch_size)
    if finds_tokens(recipe, engine.device.type):
        engine.tokens = most_tokens_that_fit(engine, sets, recipe.training.global_batch_size)
    return session


def load_inputs(recipe: Recipe, metrics: Metrics) -> Inputs:
    """Phase 1: tokenizer, rows and batch schedule."""
    source = find_base(recipe)
    tokenizer, prepared = load_data(recipe, source)
    refuse_without_effect(recipe, prepared)
    batches = batch_schedule(recipe, prepared.train)
    auxiliary = auxiliary_schedule(recipe, prepared.auxiliary, batches.total_steps)
    others = find_others(recipe, source, tokenizer, prepared.train)
    sets = load_sets(recipe, source, tokenizer, list(prepared.report.labels) or None)
    return Inputs(source, tokenizer, prepared, batches, auxiliary, others, metrics, sets)


def adapt(
    recipe: Recipe, inputs: Inputs, base: Base, context: CalibrationContext, resumed_from: Path | None
) -> Adapted:
    """Phase 3: attach the recipe's adapters, initialised, or with the shapes of a checkpoint."""
    section, seed, where, model = recipe.adapter, recipe.training.seed, recipe.where, base.model
    reached = reach(model)
    passed_over = reached.never
    left_out = targets.choose(model, section, where, passed_over).lines()
    tokens = token_ids(section, inputs.tokenizer, base.info.get("added_tokens", {}).values(), where)
    if resumed_from is None:
        attached, composition = attach_adapter(
            model,
            section,
            seed=seed,
            where=where,
            context=context,
            uncalled=passed_over,
            tokens=tokens,
            tokenizer=inputs.tokenizer,
        )
        started = start(recipe, inputs, attached)
    else:
        composition = composed_with(section, inputs.tokenizer, where)
        sites = resumed_sites(recipe, model, composition, resumed_from, passed_over)
        started = ""
        names = names_for(model, section, [site.name for site in sites], where, tokens)
        attached = attach_sites(model, sites, composition, seed=seed, fresh=False, where=where, names=names)
    if not recipe.training.compile:  # a compiler sees by itself what layers have in common
        share_inputs(attached, reached.together)
    reason = unmergeable(attached.sites, base.stored, weight_files(inputs.source))
    if recipe.model.quantization != "none":
        reason = reason or composition.keeps_dequantized
    return Adapted(attached, composition, resumed_from, reason, left_out, reached.sometimes, started)


def start(recipe: Recipe, inputs: Inputs, attached: Attached) -> str:
    """Take over the adapter that the recipe starts from; what was taken, or "" for a recipe without one."""
    found = next((other for other in inputs.others if other.option == START), None)
    if found is None or found.saved is None:
        return ""
    try:
        return str(start_from(attached, placed(found.saved, attached.model)))
    except ValueError as error:
        text = f"adapter.start_from: {found.name}: {error}"
        raise RecipeError([Problem(recipe.where("adapter.start_from"), text)]) from error


def resumed_sites(
    recipe: Recipe, model: Any, composition: compose.Composition, checkpoint: Path, passed_over: Mapping[str, str]
) -> Sequence[Site]:
    """The sites of a run that is resumed. It does not calibrate again: what calibration decided is in the checkpoint's
    ranks."""
    if composition.calibrates:
        return read_adapter(checkpoint / "adapter").sites
    return select_sites(model, recipe.adapter, composition, recipe.where, passed_over)


def calibration_context(
    recipe: Recipe, inputs: Inputs, base: Base, objective: Objective, losses: LossModule, layout: Layout
) -> CalibrationContext:
    """Calibration data for parts: the base model, and the rows in training order.

    A divided base is passed through by all processes at once, so each of them takes all rows.
    """
    accelerator, together = base.accelerator, base.strategy == "fsdp"
    rank, world = (0, 1) if together else (accelerator.process_index, accelerator.num_processes)
    wanted = recipe.training.micro_batch_size
    micro = 1 if wanted == "auto" else wanted

    def batches(n: int) -> Iterator[dict[str, Tensor]]:
        steps = range(inputs.batches.total_steps)[: math.ceil(n / recipe.training.global_batch_size)]
        ids = np.concatenate([inputs.batches.rows(step) for step in steps])
        mine = [int(i) for i in ids[:n][rank::world]]
        for at in range(0, len(mine), micro):
            batch = objective.collate(
                inputs.train, mine[at : at + micro], pad_id=pad_token(inputs.tokenizer), form=layout.form
            )
            yield to_device(batch, accelerator.device)

    return CalibrationContext(
        model=losses.model,
        batches=batches,
        loss=losses,
        tokens=objective.batch_weight,
        reduce=(lambda tensor: tensor) if together else lambda tensor: accelerator.reduce(tensor, reduction="sum"),
        agree=lambda value: broadcast_object_list([value])[0],
        seed=recipe.training.seed,
        folder=inputs.source,
    )


def note_composition(recipe: Recipe, base: Base, adapted: Adapted, layout: Layout, notes: Notes) -> None:
    """Record the packing check, and warnings about the recipe on this model and device."""
    if adapted.started:
        notes.checks["started from"] = adapted.started
    if base.fused:
        notes.checks["kernels"] = f"{count(base.fused, 'module')} with Liger's"
    if layout.said:
        notes.checks["packing"] = layout.said
    notes.warnings += composition_warnings(adapted.composition, adapted.attached.sites, base.model)
    notes.warnings += new_tokens_warnings(base, adapted.attached)
    if layout.warning:
        notes.warnings.append(layout.warning)
    if recipe.training.activation_offload and base.accelerator.device.type == "cpu":
        notes.warnings.append("training.activation_offload has no effect on a CPU")


def new_tokens_warnings(base: Base, attached: Attached) -> list[str]:
    """What is said of new tokens whose rows stay at the mean: nothing tells one of them from another."""
    new = base.info.get("added_tokens", {})
    untrained = untrained_rows(attached, list(new.values())) if new else []
    if not untrained:
        return []
    names = " and ".join(untrained)
    return [
        f"the rows of the new tokens in {names} stay the mean of all others: train_tokens: added trains them in the "
        f"embedding, with train_tokens_in: both in a head of its own too, modules_to_save a whole matrix"
    ]


def compare_init(engine: Engine, rows: data.Rows, adapted: Adapted, compute: str, notes: Notes) -> None:
    """Note what the initialised adapter does to the loss of the shortest rows; warn if the difference is unexpected."""
    with evaluation_mode(engine.losses):  # copies are those of evaluation
        batch = engine.batch(rows, shortest(rows, INIT_ROWS))
    weight = engine.objective.batch_weight(batch)
    adapted_loss, base_loss = sanity_checks.init_against_base(adapted.attached, engine.losses, batch, weight)
    sentence = (
        f"before the first step, on the {count(min(INIT_ROWS, len(rows)), 'shortest train row')}: loss "
        f"{adapted_loss:.4f} with the adapter, {base_loss:.4f} without"
    )
    same = abs(adapted_loss - base_loss) <= INIT_TOLERANCE[compute] * max(abs(base_loss), 1e-3)
    notes.checks["start"] = sentence
    if not same and not adapted.started and not adapted.composition.init_changes_output:
        notes.warnings.append(f"the initialised adapter changes the model's output: {sentence}")


def shortest(rows: data.Rows, n: int) -> list[int]:
    """Ids of the n shortest rows."""
    return [int(i) for i in np.argsort(rows.lengths, kind="stable")[:n]]
