"""A training run from start to end: folder, set-up or resume, loop, report."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from lrft import recipe as recipes
from lrft.distributed import processes
from lrft.distributed.watchdog import Watchdog
from lrft.errors import CheckFailed, LrftError
from lrft.model.hub import find_model
from lrft.planning import render as plan_render
from lrft.planning.plan import make_plan
from lrft.recipe import Recipe
from lrft.report.markdown import write_report
from lrft.runs.environment import environment
from lrft.runs.folder import RunFolder
from lrft.runs.probe import save_probe
from lrft.tracking.console import Reporter
from lrft.training import summary
from lrft.training.checkpoint import restore
from lrft.training.loop import loop
from lrft.training.out_of_memory import memory_advice
from lrft.training.setup import set_up
from lrft.training.signals import StopSignals
from lrft.training.state import Options, Trainer
from lrft.utils import files


def train(recipe: Recipe, options: Options) -> Path:
    """Train what `recipe` says. Returns the run's folder. Raises LrftError in all its kinds."""
    output = Path(recipe.output_dir)
    main = processes.rank() == 0
    resume = options.resume is not None
    if main:
        RunFolder.refuse(output, resume=resume, fresh=options.fresh)
    trainer: Trainer | None = None
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(RunFolder.open(output, resume=True, fresh=False)) if main and resume else None
            trainer = set_up(recipe, options, folder)
            if resume:
                restore(trainer)
            elif main:
                trainer.folder = stack.enter_context(RunFolder.open(output, resume=False, fresh=options.fresh))
            reporter = Reporter(output if main else None, quiet=options.quiet, main=main)
            trainer.reporter = stack.enter_context(reporter)
            world = trainer.accelerator.num_processes
            trainer.watchdog = stack.enter_context(Watchdog(processes.rank(), world, output))
            try:
                tell_start(trainer)
                with StopSignals(speak=main) as signals:
                    loop(trainer, signals)
                finish(trainer)
            except LrftError as error:
                trainer.reporter.note(recipe.masked("\n".join(error.lines())))
                raise
    except (RuntimeError, MemoryError) as error:
        advice = memory_advice(error, recipe, "" if trainer is None else where_memory_went(trainer))
        if advice is None:
            raise
        raise advice from error
    return output


def where_memory_went(trainer: Trainer) -> str:
    """The plan's memory by part, for a message; "" when there is no plan to be had."""
    recipe, world = trainer.recipe, trainer.accelerator.num_processes
    running = recipe.distributed.model_copy(update={"strategy": trainer.chosen["distributed.strategy"]})
    decided = recipe.model_copy(update={"distributed": running})
    try:
        source = find_model(recipe.model.name, recipe.model.revision, where=recipe.where("model.name"))
        nodes = world // processes.local_world_size()
        made = make_plan(decided, source, trainer.prepared, world, micro=trainer.micro, nodes=nodes)
    except (LrftError, RuntimeError, ValueError, TypeError):
        return ""
    return f"\nA step takes about: {plan_render.parts_line(made)}"


def tell_start(trainer: Trainer) -> None:
    """The run's own copies of recipe and environment, and the first screen."""
    recipe, folder, options = trainer.recipe, trainer.folder, trainer.options
    if options.resume:
        # What was measured before the first step is measured again by a run that starts there.
        trainer.reporter.rewind(trainer.progress.step or -1)
    if folder is not None:
        files.write_text(folder.path / "resolved.yaml", recipes.resolved(recipe, trainer.chosen))
        if options.source is not None and options.source.resolve() != (folder.path / "resolved.yaml").resolve():
            files.write_bytes(folder.path / "recipe.yaml", options.source.read_bytes())
        files.write_json(folder.path / "environment.json", environment())
        if trainer.prepared.validation is not None:
            save_probe(trainer.prepared.validation, folder.path)
        trainer.warnings += [recipe.masked(warning) for warning in folder.warnings]
    trainer.reporter.table(summary.start(trainer))
    for warning in trainer.warnings:
        trainer.reporter.warn(warning)
    trainer.describe()


def finish(trainer: Trainer) -> None:
    """Links, report and the last screen."""
    folder = trainer.folder
    if "gradients" not in trainer.checks and not trainer.options.resume:
        raise CheckFailed("no optimiser step was made: nothing has been trained")
    trainer.describe()
    if folder is not None:
        if not (folder.path / "best").exists():  # a run without validation: the last is the best known
            files.point(folder.path / "best", (folder.path / "last").resolve())
        write_report(folder.path)
    trainer.reporter.end(summary.end(trainer))
