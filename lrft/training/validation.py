"""Loss on validation rows during training, the best state so far, and early stopping."""

from __future__ import annotations

import math
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from lrft.data import Rows
from lrft.errors import NonFinite
from lrft.evaluation.generate import answer_rows, room_note, with_prompts
from lrft.evaluation.loss import counted_as, loss_of
from lrft.loading.evaluation_interval import answered_rows
from lrft.model.load import position_limit
from lrft.recipe import EarlyStopping
from lrft.training import sources
from lrft.training.engine import Engine
from lrft.training.state import Progress, Session

# What parts that ask for a loss during a step are given: the paper that introduced it takes 32 rows.
HELD_OUT_ROWS = 32


def validate(session: Session) -> bool:
    """Evaluate on the validation rows and report it. Returns whether this is the best trained state so far."""
    with session.engine.averaged():
        return evaluate(session)


def evaluate(session: Session) -> bool:
    """`validate`, of the tensors as they are."""
    recipe, progress, engine, rows = session.recipe, session.progress, session.engine, session.inputs.validation
    if rows is None:
        raise ValueError("evaluation without validation rows")
    session.trackers.console.doing("evaluating")
    session.watchdog.at("evaluating")
    micro = recipe.evaluation.micro_batch_size or engine.micro
    record: dict[str, Any] = {"step": progress.step} | validation_losses(session, rows, micro)
    figures = record.get("figures", {})
    for name, others in session.inputs.sets.items():
        figures[f"{name}/loss"] = validation_loss(engine, others, micro)["loss"]
    answers = answers_now(session, rows, micro)
    if answers and recipe.evaluation.samples:
        record["samples"] = answers[: recipe.evaluation.samples]
    if session.inputs.metrics.of_answers:
        main = engine.accelerator.is_main_process
        figures |= shared(session.inputs.metrics.scores(answers) if main else {})
    if figures:
        record["figures"] = figures
    if finished(session):
        improved = note_loss(progress, record["loss"], recipe.training.early_stopping, score_of(session, record))
    else:
        improved, progress.last_loss = False, record["loss"]
        record["unfinished"] = True
    if recipe.evaluation.best != "loss":
        record["by"] = recipe.evaluation.best
    session.trackers.log("eval", record | {"best": improved})
    if not math.isfinite(record["loss"]):  # what gave it must not become a checkpoint
        raise NonFinite(
            f"the validation loss became {record['loss']} after step {progress.step}. Earlier checkpoints are kept.",
            "Lower training.learning_rate, or check the base model and the validation rows.",
        )
    return improved


def finished(session: Session) -> bool:
    """Whether the state of now can be the best one. The untouched base is what others are compared with."""
    step, total = session.progress.step, session.inputs.batches.total_steps
    return step == 0 or all(part.finished(step, total) for part in session.adapted.composition.parts)


def answers_now(session: Session, rows: Rows, micro: int) -> list[dict[str, Any]]:
    """Generated answers to the first rows that ask something, in their order, on every process. A head generates none.

    Each process answers its share of them, but for a divided base, whose passes all have to make together.
    """
    engine = session.engine
    asked = rows.slice([]) if engine.objective.head else with_prompts(rows)
    chosen = asked.slice(range(min(answered_rows(session.recipe), len(asked))))
    if not len(chosen):
        return []
    most, lengths = session.recipe.evaluation.max_new_tokens, [len(chosen.prompt(i)) for i in range(len(chosen))]
    if note := room_note(lengths, most, position_limit(session.base.model.config)):
        session.trackers.console.warn(f"evaluation.max_new_tokens: {note}")
    shares = 1 if engine.strategy.together else engine.world
    own = answer_rows(
        session.base.model,
        session.inputs.tokenizer,
        chosen.slice(range(engine.rank % shares, len(chosen), shares)),
        max_new_tokens=most,
        batch_size=micro,
        copies=engine.losses.copies,
    )
    return own if shares == 1 else in_order(own, len(chosen), engine)


def in_order(own: list[dict[str, Any]], total: int, engine: Engine) -> list[dict[str, Any]]:
    """The `total` answers of all processes, of which every one has dealt itself those from its rank on."""
    with engine.watchdog.during("gathering answers"):
        found = gather_object(own)
    places = [i for rank in range(engine.world) for i in range(rank, total, engine.world)]
    return [answer for _, answer in sorted(zip(places, found, strict=True), key=lambda pair: pair[0])]


def shared(scores: dict[str, float]) -> dict[str, float]:
    """The first process's, which alone asks the metrics."""
    found: dict[str, float] = broadcast_object_list([scores])[0]
    return found


def score_of(session: Session, record: dict[str, Any]) -> float | None:
    """What evaluation.best says of this evaluation, the lower the better; None where the loss decides."""
    best, metrics = session.recipe.evaluation.best, session.inputs.metrics
    if best == "loss":
        return None
    value = record.get(best, record.get("figures", {}).get(best))
    if value is None:  # no row asks anything
        return math.inf
    lower = best == "perplexity" or any(m.name == best and m.lower_is_better for m in metrics.of_answers)
    return float(value if lower else -value)


def validation_loss(engine: Engine, rows: Rows, micro: int) -> dict[str, Any]:
    """`evaluation.loss_of` for the model as it is now, over all processes. micro: rows of a pass."""
    return loss_of(
        engine.model,
        rows,
        micro=micro,
        pad_id=engine.pad_id,
        objective=engine.objective,
        form=engine.layout.form,
        rank=engine.rank,
        world=engine.world,
        reduce=engine.reduce,
    )


def validation_losses(session: Session, rows: Rows, micro: int) -> dict[str, Any]:
    """`validation_loss`; where entries of data.train have shares, also "sources": {entry: its loss}."""
    members = sources.members(session.recipe, session.inputs)
    if not members:
        return dict(validation_loss(session.engine, rows, micro))
    engine = session.engine
    found = {name: validation_loss(engine, rows.slice(ids), micro) for name, ids in members.items()}
    by_source = {"sources": {name: one["loss"] for name, one in found.items()}}
    if any("figures" in one for one in found.values()):  # which need not be means
        return validation_loss(engine, rows, micro) | by_source
    counted = {name: engine.objective.weight(rows, ids) for name, ids in members.items()}
    total = sum(counted.values())
    mean = sum(found[name]["loss"] * n for name, n in counted.items() if n) / total if total else math.nan
    whole = {"loss": mean, counted_as(engine.objective): total}
    return whole | ({"perplexity": math.exp(min(mean, 700.0))} if engine.objective.perplexity else {}) | by_source


def held_out_loss(session: Session) -> float | None:
    """Loss on the first few validation rows, over all processes; None without any."""
    rows = session.inputs.validation
    if rows is None:
        return None
    few = rows.slice(range(min(len(rows), HELD_OUT_ROWS)))
    micro = session.recipe.evaluation.micro_batch_size or session.engine.micro
    loss: float = validation_loss(session.engine, few, micro)["loss"]
    return loss


def note_loss(progress: Progress, loss: float, stopping: EarlyStopping | str, score: float | None = None) -> bool:
    """Book a validation loss; returns whether it is the best so far. A NaN is never the best.

    score: what decides instead of the loss, the lower the better.

    The untouched base is the first to be beaten, where it was measured.
    """
    if progress.step == 0:
        progress.start_loss = loss
    else:
        progress.last_loss = loss
    least = 0.0 if isinstance(stopping, str) else stopping.min_delta
    decides, before = (loss, progress.best_loss) if score is None else (score, progress.best_score)
    if progress.stale_loss is None or decides < progress.stale_loss - least:
        progress.stale_loss, progress.stale = decides, 0
    else:
        progress.stale += 1
    if not decides < (math.inf if before is None else before):
        return False
    progress.best_loss, progress.best_score, progress.best_step = loss, score, progress.step
    return True


def has_patience(session: Session) -> bool:
    """False when early stopping ends the run."""
    stopping, progress = session.recipe.training.early_stopping, session.progress
    if isinstance(stopping, str) or progress.stale < stopping.patience:
        return True
    best = session.recipe.evaluation.best
    better = f"a validation loss below {progress.stale_loss:.4f}" if best == "loss" else f"a better {best}"
    session.trackers.console.line(f"early stopping: {progress.stale} evaluations without {better}")
    return False
