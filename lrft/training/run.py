"""A training run from start to end: folder, set-up or resume, loop, report."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from lrft import recipe as recipes
from lrft import registry
from lrft.distributed import processes
from lrft.distributed.watchdog import Watchdog
from lrft.errors import CheckFailed, LrftError
from lrft.loading.packages import refuse_missing_packages
from lrft.planning import render as plan_render
from lrft.planning.plan import make_plan
from lrft.recipe import Recipe
from lrft.report.markdown import write_report
from lrft.report.run_page import write_page
from lrft.runs.after_training import shown
from lrft.runs.environment import environment
from lrft.runs.folder import RunFolder
from lrft.runs.probe import save_probe
from lrft.runs.verdict import worse_at_the_end, worse_than_base
from lrft.tracking.console import Reporter
from lrft.tracking.fan_out import Trackers
from lrft.tracking.metrics_file import MetricsFile
from lrft.training import summary
from lrft.training.checkpoint import restore
from lrft.training.deterministic import deterministic_algorithms
from lrft.training.loop import loop
from lrft.training.out_of_memory import memory_advice
from lrft.training.setup import set_up
from lrft.training.signals import StopSignals
from lrft.training.state import Options, Session
from lrft.utils import files


def train(recipe: Recipe, options: Options) -> Path:
    """Train `recipe`. Returns the run folder. Raises any subclass of LrftError."""
    output = Path(recipe.output_dir)
    main = processes.rank() == 0
    refuse_missing_packages(recipe)
    resume = options.resume is not None
    if main:
        RunFolder.refuse(output, resume=resume, fresh=options.fresh)
        RunFolder.refuse_in_use(output)
    session: Session | None = None
    try:
        with ExitStack() as stack:
            stack.enter_context(deterministic_algorithms(recipe.training.deterministic))
            folder = stack.enter_context(RunFolder.open(output, resume=True, fresh=False)) if main and resume else None
            session = set_up(recipe, options, folder)
            if resume:
                restore(session)
            elif main:
                session.folder = stack.enter_context(RunFolder.open(output, resume=False, fresh=options.fresh))
            session.trackers = stack.enter_context(open_trackers(recipe, output if main else None, options.quiet))
            session.watchdog = stack.enter_context(Watchdog(processes.rank(), session.engine.world, output))
            session.engine.watchdog = session.watchdog
            go(session, main)
    except (RuntimeError, MemoryError) as error:
        advice = memory_advice(error, recipe, "" if session is None else where_memory_went(session))
        if advice is None:
            raise
        raise advice from error
    return output


def go(session: Session, main: bool) -> None:
    """Run the loop between the start and end summaries; an early end is logged."""
    try:
        tell_start(session)
        with StopSignals(speak=main) as signals:
            loop(session, signals)
        finish(session)
    except LrftError as error:
        session.trackers.console.note(session.recipe.masked("\n".join(error.lines())))
        raise


def open_trackers(recipe: Recipe, folder: Path | None, quiet: bool) -> Trackers:
    """The console, metrics.jsonl and the recipe's trackers. folder: the run's; None on every process but the first."""
    if folder is None:
        return Trackers.silent()
    cards = registry.declared("trackers")
    others = [cards[named.name].load()(**named.options) for named in recipe.logging.report_to]
    return Trackers(Reporter(folder, quiet=quiet), MetricsFile(folder), others)


def where_memory_went(session: Session) -> str:
    """Memory breakdown from the plan, for an error message; "" when planning fails."""
    recipe, world = session.recipe, session.engine.world
    running = recipe.distributed.model_copy(update={"strategy": session.base.strategy})
    decided = recipe.model_copy(update={"distributed": running})
    try:
        nodes = world // processes.local_world_size()
        inputs, size = session.inputs, session.engine.size
        made = make_plan(decided, inputs.source, inputs.prepared, world, size=size, nodes=nodes, others=inputs.others)
    except (LrftError, RuntimeError, ValueError, TypeError):
        return ""
    return f"\nEstimated memory of a step: {plan_render.parts_line(made)}"


def tell_start(session: Session) -> None:
    """Write resolved recipe and environment, and print the start summary."""
    recipe, folder, options, notes = session.recipe, session.folder, session.options, session.notes
    if options.resume:
        # What was measured before the first step is measured again by a run that starts there.
        session.trackers.rewind(session.progress.step or -1)
    if folder is not None:
        files.write_text(folder.path / "resolved.yaml", recipes.resolved(recipe, session.chosen))
        if options.source is not None and options.source.resolve() != (folder.path / "resolved.yaml").resolve():
            files.write_bytes(folder.path / "recipe.yaml", options.source.read_bytes())
        files.write_json(folder.path / "environment.json", environment())
        if session.inputs.validation is not None:
            save_probe(session.inputs.validation, folder.path)
        notes.warnings += [recipe.masked(warning) for warning in folder.warnings]
    session.trackers.console.table(summary.start(session))
    for warning in notes.warnings:
        session.trackers.console.warn(warning)
    facts = summary.facts(session)
    if folder is not None:
        folder.describe(facts)
        session.trackers.start(folder.path, facts, session.progress.step)


def finish(session: Session) -> None:
    """Write links and report, and print the end summary. Raises CheckFailed, after all of them, for a run that is no
    better than its base."""
    folder = session.folder
    if "gradients" not in session.notes.checks and not session.options.resume:
        raise CheckFailed("no optimiser step was taken: nothing was trained")
    facts = summary.facts(session)
    if warning := worse_at_the_end(facts["result"]):
        session.trackers.console.warn(warning)
        facts = summary.facts(session)
    if folder is not None:
        folder.describe(facts)
        if session.progress.best_step is None:  # a run without validation: the last is the best known
            files.point(folder.path / "best", (folder.path / "last").resolve())
        if "markdown" in session.recipe.logging.report:
            write_report(folder.path)
        if "html" in session.recipe.logging.report:
            write_page(folder.path)
    session.trackers.finish(facts)
    session.trackers.console.end(summary.end(session))
    # One process says it: the others have ended well by then, or do so undisturbed.
    if folder is not None and (verdict := worse_than_base(facts["result"])):
        raise CheckFailed(
            f"this run is {verdict}. There is no best/; last/ is the state at the end."
            + (" The commands of `after` were not run." if shown(session.recipe) else ""),
            "Lower training.learning_rate, or look at the rows with lrft preview.",
        )
