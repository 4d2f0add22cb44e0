"""Set-up of a run in four phases: inputs, base, adapters, engine.

Nothing is written to the run folder here, so a failed set-up leaves no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lrft import data
from lrft.adapters import compose, gradient_checkpointing, targets
from lrft.adapters.adapter import Site
from lrft.adapters.attach import attach_adapter, attach_sites, composition_warnings, prune_base, select_sites
from lrft.adapters.attached import SHARED, Attached
from lrft.adapters.beside import names_for, token_ids, untrained_rows
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.ensemble import copying
from lrft.adapters.modules_to_save import tensors_of
from lrft.adapters.part import Making
from lrft.adapters.peft_import import placed
from lrft.adapters.reach import reach
from lrft.adapters.start_from import start_from
from lrft.adapters.storage import read_adapter
from lrft.data.sampler import auxiliary_schedule, batch_schedule
from lrft.distributed import arriving, fsdp, processes, zero2
from lrft.distributed.strategy import Divided, Strategy
from lrft.errors import Problem, RecipeError
from lrft.evaluation.generate import pad_token
from lrft.export.merge import names_in, unmergeable
from lrft.loading.from_recipe import (
    added_by,
    base_name,
    find_base,
    head_for,
    load_data,
    load_recipe_model,
    load_sets,
    made,
    objective_of,
)
from lrft.loading.metrics import Metrics, figures_of, metrics_of
from lrft.loading.no_effect import refuse_without_effect
from lrft.loading.optimizer import rate_hint, refuse_optimizer
from lrft.loading.others import find_others, load_others
from lrft.model import placement
from lrft.model.compile import compile_blocks
from lrft.model.end_tokens import add_stops
from lrft.model.head import Head, head_modules
from lrft.model.modes import evaluation_mode
from lrft.model.stored import Stored
from lrft.model.weights import fingerprint, weight_files
from lrft.objectives.base import START, LossModule, Objective, common_layout
from lrft.objectives.neftune import add_noise
from lrft.objectives.packing import Layout, find_layout
from lrft.objectives.shared_prompt import sharing
from lrft.objectives.to_device import to_device
from lrft.optim.groups import Joined, split
from lrft.optim.optimizer import grouped
from lrft.recipe import Recipe
from lrft.recipe.schema import default_of
from lrft.runs.folder import RunFolder
from lrft.training import sanity_checks, sources
from lrft.training.after import refuse_impossible
from lrft.training.checkpoint import resume_point
from lrft.training.constants import with_constants
from lrft.training.engine import Engine
from lrft.training.find_batch_size import largest_that_fits, most_tokens_that_fit
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
    if objective.shares_prompts and not recipe.training.neftune_alpha:
        layout = sharing(base.model, inputs.train, layout, compute)
    with tell("initialising the adapters"):
        adapted = adapt(recipe, inputs, base, context, resume_point(folder, options))
    refuse_impossible(recipe, adapted)
    engine = start_engine(recipe, inputs, base, adapted, objective, losses, layout)
    with tell("asking the reference about all rows"):
        inputs = with_constants(recipe, inputs, base, engine)
    notes.checks |= losses.checks()
    note_composition(recipe, base, adapted, layout, notes)
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
    if recipe.training.micro_batch_tokens == "auto":
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
    accelerator = processes.make_accelerator(compute)
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
        **({} if head is None else {"head": head.to_dict()}),
        **({} if added is None else {"added_tokens": added.to_dict()}),
    }
    return Base(model, accelerator, compute, strategy, info, stored, where)


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
            model, section, seed=seed, where=where, context=context, uncalled=passed_over, tokens=tokens
        )
        started = start(recipe, inputs, attached)
    else:
        composition = compose.compose_section(section)
        sites = resumed_sites(recipe, model, composition, resumed_from, passed_over)
        started = ""
        names = names_for(model, section, [site.name for site in sites], where, tokens)
        attached = attach_sites(model, sites, composition, seed=seed, fresh=False, where=where, names=names)
    reason = unmergeable(attached.sites, base.stored, weight_files(inputs.source))
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


def refuse_beside(recipe: Recipe, names: Sequence[str], does: str) -> NoReturn:
    """Raises RecipeError for methods that the objective has no place for."""
    objective, usual = recipe.training.objective.name, default_of("objective").name
    text = f"{' '.join(names)} {does}, which training.objective: {objective} does not take up"
    remedy = f"Take {' and '.join(names)} out, or train with {usual}"
    raise RecipeError([Problem(recipe.where("adapter.method"), f"adapter.method: {text}. {remedy}")])


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


def checkpoint_blocks(recipe: Recipe, model: Any) -> None:
    """Raises RecipeError for a model that cannot compute its blocks again, as one of its own code may be."""
    try:
        gradient_checkpointing.checkpoint(model, recipe.training.gradient_checkpointing)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        text = f"training.gradient_checkpointing: {type(model).__name__} does not support it ({error}); set it to none"
        raise RecipeError([Problem(recipe.where("training.gradient_checkpointing"), text)]) from error


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


def make_optimizer(
    recipe: Recipe, attached: Attached, composition: compose.Composition, broadcast: Callable[[Tensor], Tensor]
) -> torch.optim.Optimizer:
    """The recipe's optimiser; or the one provided by a part for the adapters, and the recipe's for what is trained
    beside them. Raises RecipeError for one that does not take all adapters' tensors."""
    t, owner = recipe.training, composition.optimizer_owner
    by_site = composition.rates_by_site or owner is not None
    owners = attached.owners() if by_site else None
    groups = grouped(
        attached.trained(),
        composition.lr_factors(),
        t.learning_rate,
        t.weight_decay,
        owners=owners,
        undecayed=attached.undecayed(),
    )
    if owner is None:
        optimizer: torch.optim.Optimizer = made(t.optimizer, "optimizers").make(groups)
        return optimizer
    ranks = {site.name: site.rank for site in attached.sites}
    ranks[SHARED] = max(ranks.values())
    others = set(tensors_of(attached.beside.by_place))
    beside, own = split(groups, lambda name, _: name in others)
    if beside and owner.gradients_taken:
        names = sorted(others)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        text = (
            f"{owner.name} takes gradients as they arrive, and {names[0]}{more} is trained beside by another optimiser"
        )
        raise RecipeError([Problem(recipe.where("adapter.method"), f"adapter.method: {text}: take one of them out")])
    making = Making(t.optimizer.options["betas"], t.optimizer.options["eps"], t.seed, broadcast)
    try:
        first = owner.make_optimizer([{**group, "rank": ranks[group["site"]]} for group in own], making)
    except ValueError as error:
        problem = Problem(recipe.where("adapter.method"), f"adapter.method: {owner.name}: {error}")
        raise RecipeError([problem]) from None
    return Joined([first, made(t.optimizer, "optimizers").make(beside)]) if beside else first


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
    )


def note_composition(recipe: Recipe, base: Base, adapted: Adapted, layout: Layout, notes: Notes) -> None:
    """Record the packing check, and warnings about the recipe on this model and device."""
    if adapted.started:
        notes.checks["started from"] = adapted.started
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
        f"embedding, modules_to_save a whole matrix"
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
