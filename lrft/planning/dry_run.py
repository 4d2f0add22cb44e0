"""`lrft train --dry-run`: print what each process would do, using the code of a real run.

The data are prepared, and kept in the cache, as `lrft check` does; no weights are read and no process is started.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lrft import data
from lrft.data.sampler import batch_schedule
from lrft.distributed import arriving, fsdp, zero2
from lrft.distributed.launch import Process
from lrft.distributed.sizes import copy_size
from lrft.errors import Problem, RecipeError
from lrft.loading.evaluation_interval import evaluation_interval
from lrft.loading.from_recipe import find_base, load_data
from lrft.loading.no_effect import refuse_without_effect
from lrft.loading.others import find_others
from lrft.loading.pass_size import finds_tokens
from lrft.model.weights import cache_dir
from lrft.optim import lr_schedule
from lrft.planning.imagined import imagined
from lrft.planning.plan import pass_size
from lrft.recipe import Recipe
from lrft.runs.after_training import shown
from lrft.runs.folder import RunFolder
from lrft.runs.probe import PROBE
from lrft.tracking.console import PLAIN_WIDTH
from lrft.utils import hardware
from lrft.utils.text import Row, count, layout

# What a run leaves in its folder, beside checkpoints and the links to them.
FILES = (
    "run.json",
    "resolved.yaml",
    "recipe.yaml",
    "environment.json",
    "metrics.jsonl",
    "log.txt",
    "report.md",
    "loss.png",
)
# Row ids and checkpoints that are written out.
SHOWN = 12
OF_EACH = ("RANK", "LOCAL_RANK")


def dry_run(recipe: Recipe, processes: Sequence[Process], *, fresh: bool) -> None:
    """Print what `processes` would do. Raises what a run would raise before its model is loaded."""
    if processes[0].rank == 0:
        RunFolder.refuse(Path(recipe.output_dir), resume=False, fresh=fresh)
    zero2.refuse(recipe, processes[0].world)
    arriving.refuse(recipe, processes[0].world)
    source = find_base(recipe)
    tokenizer, prepared = load_data(recipe, source)
    refuse_without_effect(recipe, prepared)
    find_others(recipe, source, tokenizer, prepared.train)
    sharers = sharing(recipe, source, processes[0])
    said: list[Row] = []
    if processes[0].rank == 0:
        said += of_the_run(recipe, prepared, processes, sharers)
    said += [row for process in processes for row in of_a_process(recipe, prepared.train, process, sharers)]
    lines = [f"{label}{text}".rstrip() for label, text in layout(said, PLAIN_WIDTH)]
    sys.stdout.write("\n".join([*lines, ""]))  # in one piece: other processes may write to the same terminal
    sys.stdout.flush()


def sharing(recipe: Recipe, source: Path, process: Process) -> int:
    """How many processes hold one copy of the base together; 1 where each holds the whole. Raises RecipeError."""
    wanted, weights = recipe.distributed.strategy, 0
    memory = hardware.gpu_memory(torch.device("cuda" if process.device.startswith("cuda") else "cpu"))
    if wanted == "auto" and memory is not None:
        with imagined(recipe, source) as model:
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if fsdp.strategy(wanted, weights, memory) != "fsdp":
        return 1
    on_a_node = int(process.given.get("LOCAL_WORLD_SIZE", "1"))
    try:
        return copy_size(process.world, on_a_node, recipe.distributed.shard_over)
    except ValueError as error:
        where = recipe.where("distributed.strategy")
        raise RecipeError([Problem(where, f"distributed.strategy: {error}")]) from None


def strategy_line(recipe: Recipe, sharers: int) -> str:
    """What is done with the base."""
    chosen = ", chosen by the size of the base and of a GPU's memory" if recipe.distributed.strategy == "auto" else ""
    if recipe.distributed.strategy == "zero2":
        return "zero2: each process holds the whole base, and a shard of the gradients and optimiser state"
    if sharers == 1:
        return f"ddp: each process holds the whole base{chosen}"
    return f"fsdp: {sharers} processes share one sharded copy of the base{chosen}"


def of_the_run(recipe: Recipe, prepared: data.Prepared, processes: Sequence[Process], sharers: int) -> list[Row]:
    """What is the same for all, and what the first process alone does."""
    first, settings = processes[0], recipe.training
    order = batch_schedule(recipe, prepared.train)
    together = [f"{name}={value}" for name, value in first.given.items() if name not in OF_EACH]
    size = pass_size(recipe, first.world)
    each = count(size.rows, "row") if size.tokens is None else count(size.tokens, "token")
    rows_found = size.tokens is None and settings.micro_batch_size == "auto"
    found = rows_found or finds_tokens(recipe, hardware.device().type)
    return [
        ("dry run", "no weights were loaded and no run was started"),
        ("processes", facts(f"{first.world}, {starter(processes)}", *together)),
        *([("strategy", [strategy_line(recipe, sharers)])] if first.world > 1 else []),
        ("data", prepared.report.lines()),
        (
            "steps",
            facts(
                f"{count(order.total_steps, 'step')} of {count(settings.global_batch_size, 'row')}",
                f"{order.steps_per_epoch:,} an epoch",
                f"micro-batches of {'at most ' * (found or size.tokens is not None)}{each}"
                f"{', found before the first step' * found}",
            ),
        ),
        (
            "written",
            [
                f"by rank 0 alone, to {recipe.masked(recipe.output_dir)}: {' '.join(files_of(prepared))}",
                checkpoint_line(recipe, prepared, order.total_steps),
                f"by the first process to get there, to {cache_dir()}: the tokenised rows"
                if recipe.data.cache
                else "no cache of tokenised rows: each rank tokenises them",
            ],
        ),
        *([("after", shown(recipe))] if shown(recipe) else []),
    ]


def files_of(prepared: data.Prepared) -> list[str]:
    """Names of the run's files: with validation rows, some are kept for `lrft merge` to compare with."""
    return [*FILES, *([PROBE] if prepared.validation is not None else [])]


def starter(processes: Sequence[Process]) -> str:
    """The launcher that starts the processes."""
    if len(processes) < processes[0].world:
        return "started by a launcher; each process reports itself"
    return "started by lrft" if len(processes) > 1 else "this one"


def checkpoint_line(recipe: Recipe, prepared: data.Prepared, total: int) -> str:
    """The steps after which a checkpoint is due."""
    every = lr_schedule.interval(recipe.checkpoint.every, total)
    found = (step for step in range(1, total + 1) if step == total or lr_schedule.due(step, every, total))
    steps = [f"{step:,}" for step, _ in zip(found, range(SHOWN + 1), strict=False)]
    evaluated = evaluation_interval(recipe, prepared, batch_schedule(recipe, prepared.train)) is not None
    best = ", and at each new best validation loss" if evaluated else ""
    return f"checkpoints after steps {shortened(steps)}{best}"


def of_a_process(recipe: Recipe, rows: data.Rows, process: Process, sharers: int) -> list[Row]:
    """Where it runs, with whom it shares the base, and the rows of its first step."""
    passes = passes_of(recipe, rows, 0, process)
    ids = [str(i) for one in passes for i in one]
    place = [f"{name}={process.given[name]}" for name in OF_EACH if name in process.given]
    lowest = process.rank // sharers * sharers
    shared = f"a copy of the base on ranks {lowest} to {lowest + sharers - 1}" if sharers > 1 else ""
    first = f"step 1: {count(len(ids), 'row')} in {count(len(passes), 'micro-batch', 'micro-batches')}"
    return [
        (
            f"rank {process.rank}",
            facts(
                f"{process.node}, local rank {process.local_rank}, {process.device}",
                " ".join(place),
                shared,
                f"{first}: {shortened(ids)}" if ids else "step 1: no rows, it computes with weight zero",
            ),
        )
    ]


def passes_of(recipe: Recipe, rows: data.Rows, step: int, process: Process) -> list[list[int]]:
    """Row ids of each micro-batch of a process in a step (from 0): what the loop takes."""
    size = pass_size(recipe, process.world)
    return size.passes(rows, batch_schedule(recipe, rows).rows(step), rank=process.rank, world=process.world)


def shortened(words: Sequence[str]) -> str:
    return " ".join(words[:SHOWN]) + (" ..." if len(words) > SHOWN else "")


def facts(*said: str) -> str:
    """On one line where they fit."""
    return "   ".join(one for one in said if one)
