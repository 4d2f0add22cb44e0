"""Everything before the first step. Nothing is written into the run's folder here: a mistake leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lrft import base, checks, data, layout, machine, optim
from lrft.base.compiled import compile_blocks
from lrft.core import checkpointing, compose
from lrft.core.attached import Attached
from lrft.data.batch import Form, collate
from lrft.errors import Problem, RecipeError
from lrft.recipe import Recipe
from lrft.trainer import Options, Trainer

# Relative difference of the loss between a fresh adapter and the base that rounding may make.
START_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}
START_ROWS = 4


def set_up(recipe: Recipe, options: Options) -> Trainer:
    """Base, data, adapters, optimiser. Raises LrftError in most of its kinds."""
    t = recipe.training
    compute = machine.computation(t.precision)
    dtype = machine.frozen_dtype(recipe.model.precision, compute)
    source = base.resolve(recipe.model.name, recipe.model.revision, where=recipe.where("model.name"))
    # Data come before any process group exists: a rank that waited here for another would run into its deadline.
    tokenizer = load_tokenizer(recipe, source)
    prepared = prepare_data(recipe, source, tokenizer)
    model = load_model(recipe, source, dtype)
    accelerator = machine.make_accelerator(compute)
    model.to(accelerator.device)
    attached, composition = compose.attach_adapter(model, recipe.adapter, seed=t.seed, where=recipe.where)
    found = layout.find_layout(model, prepared.train, packing=recipe.data.packing, compute=compute)
    proven = {"packing": found.said} if found.said else {}
    if t.gradient_checkpointing != "none":
        checkpointing.checkpoint(model, t.gradient_checkpointing)
    if t.compile and not compile_blocks(model):
        text = "training.compile: this model has no blocks that transformers knows"
        raise RecipeError([Problem(recipe.where("training.compile"), text)])
    groups = optim.grouped(
        attached.trained(),
        composition.lr_factors(),
        t.learning_rate,
        t.weight_decay,
        owners=attached.owners() if composition.rates_by_site else None,
    )
    adamw = optim.make_adamw(groups, t.optimizer)
    losses = found.loss(model)
    wrapped, optimizer = accelerator.prepare(losses, adamw)
    warnings = compose.advice(composition, attached.sites, model)
    warnings += [found.warning] if found.warning else []
    proven["start"], odd = compare_start(attached, losses, prepared.train, compute, found.form)
    return Trainer(
        recipe=recipe,
        options=options,
        compute=compute,
        base_info={
            "name": base_name(recipe),
            "revision": recipe.model.revision,
            "fingerprint": base.fingerprint(source),
            "dtype": dtype,
        },
        prepared=prepared,
        tokenizer=tokenizer,
        accelerator=accelerator,
        attached=attached,
        composition=composition,
        model=wrapped,
        layout=found,
        optimizer=optimizer,
        plan=data.Schedule(
            len(prepared.train), t.global_batch_size, t.epochs, t.max_steps, t.seed, recipe.data.shuffle
        ),
        warnings=[*warnings, *odd],
        checks=proven,
    )


def base_name(recipe: Recipe) -> str:
    """The base as files name it: a path as the recipe writes it, with ${NAME}. A hub id is public."""
    name = recipe.model.name
    return recipe.masked(name) if Path(name).expanduser().exists() else name


def load_tokenizer(recipe: Recipe, source: Path) -> Any:
    """The base's tokenizer, with the recipe's chat template where it names one: it is saved with every result."""
    tokenizer = base.load_tokenizer(source, trust_remote_code=recipe.model.trust_remote_code)
    template = data.chat_template(recipe.data, tokenizer, where=recipe.where)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def prepare_data(recipe: Recipe, source: Path, tokenizer: Any) -> data.Prepared:
    prepared = data.prepare(
        recipe.data,
        tokenizer,
        seed=recipe.training.seed,
        limit=base.position_limit(base.load_config(source, trust_remote_code=recipe.model.trust_remote_code)),
        where=recipe.where,
        cache=base.cache_dir(),
    )
    prepared.rename(recipe.masked)
    return prepared


def load_model(recipe: Recipe, source: Path, dtype: str) -> Any:
    return base.load_model(
        source,
        dtype=machine.DTYPES[dtype],
        attention=recipe.model.attention,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def compare_start(
    attached: Attached, losses: nn.Module, rows: data.Rows, compute: str, form: Form
) -> tuple[str, list[str]]:
    """What the fresh adapter does to the loss of the shortest rows: a sentence, and a warning if anything."""
    device = next(attached.model.parameters()).device
    batch = collate(rows, shortest(rows, START_ROWS), pad_id=0, form=form)
    adapted, base_loss = checks.start_against_base(attached, losses, {k: v.to(device) for k, v in batch.items()})
    words = f"before the first step the loss is {adapted:.4f}, the base's {base_loss:.4f}"
    same = abs(adapted - base_loss) <= START_TOLERANCE[compute] * max(abs(base_loss), 1e-3)
    return words, [] if same else [f"the adapter does not start as the base: {words}"]


def shortest(rows: data.Rows, n: int) -> list[int]:
    """Ids of the n shortest rows."""
    return [int(i) for i in np.argsort(rows.lengths, kind="stable")[:n]]
