"""Save and restore checkpoints; resuming is refused when recipe, data or base have changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor

import lrft
from lrft import recipe as recipes
from lrft.adapters.compose import Composition
from lrft.adapters.storage import read_adapter, save_adapter
from lrft.errors import CheckFailed, UsageError
from lrft.model.end_tokens import save_stops
from lrft.optim.named_state import with_state
from lrft.runs.folder import RunFolder
from lrft.training import summary
from lrft.training.state import Options, Progress, Session
from lrft.utils import files

# Keys that say how a run fits the machine or what it tells, not what it learns: free to change when resuming.
FREE_ON_RESUME = (
    "training.micro_batch_size",
    "training.micro_batch_tokens",
    "evaluation.micro_batch_size",
    "logging.",
    "checkpoint.",
    "output_dir",
    "data.cache",
    "data.packing",
    "training.gradient_checkpointing",
    "training.activation_offload",
    "training.compile",
    "training.kernels",
    "distributed.",
    "after.",
)


def save(session: Session, *, best: bool) -> None:
    """Save a checkpoint of all state that the rest of the run depends on."""
    session.watchdog.at("waiting for all processes before saving")
    session.engine.accelerator.wait_for_everyone()
    with session.engine.averaged():
        save_as_it_is(session, best=best)


def save_as_it_is(session: Session, *, best: bool) -> None:
    """`save`, of the tensors as they are."""
    optimizer = session.engine.strategy.state()
    if session.folder is None:
        return
    session.trackers.console.doing("saving")
    session.folder.save(
        session.progress.step,
        lambda path: write_checkpoint(session, optimizer, path),
        keep=session.recipe.checkpoint.keep,
        best=best,
    )
    session.folder.describe(summary.facts(session))


def write_checkpoint(session: Session, optimizer: Mapping[str, Tensor], path: Path) -> None:
    """optimizer: its state, from the run's strategy."""
    adapter = path / "adapter"
    adapter.mkdir()
    session.inputs.tokenizer.save_pretrained(adapter)
    save_stops(session.base.model, adapter)
    if session.engine.losses.head is not None:
        session.engine.losses.head.save(adapter)
    save_adapter(
        session.adapted.attached,
        adapter,
        base=session.base.info,
        seed=session.recipe.training.seed,
        extra={"lrft": lrft.__version__},
        beside=[path.relative_to(adapter).as_posix() for path in adapter.rglob("*") if path.is_file()],
    )
    files.write_tensors(path / "optimizer.safetensors", optimizer)
    files.write_tensors(path / "parts.safetensors", part_states(session.adapted.composition))
    scaler = session.engine.accelerator.scaler
    files.write_json(
        path / "trainer.json",
        {
            "progress": vars(session.progress),
            "data": session.inputs.prepared.key,
            "stream": None if session.inputs.prepared.stream is None else session.inputs.prepared.stream.state(),
            "base": session.base.info,
            "others": {option: other.fingerprint for option, other in session.engine.losses.others.items()},
            "optimizer": with_state(optimizer),
            "scaler": None if scaler is None else scaler.state_dict(),
        },
    )


def part_states(composition: Composition) -> dict[str, Tensor]:
    """What the parts of a composition need to go on, by "part/key"."""
    return {f"{part.name}/{key}": tensor for part in composition.parts for key, tensor in part.state().items()}


def load_part_states(composition: Composition, states: Mapping[str, Tensor]) -> None:
    for part in composition.parts:
        mine = f"{part.name}/"
        part.load_state({key.removeprefix(mine): t for key, t in states.items() if key.startswith(mine)})


def resume_point(folder: RunFolder | None, options: Options) -> Path | None:
    """The checkpoint to resume from, chosen by the first process; None for a new run."""
    if options.resume is None:
        return None
    found = None if folder is None else folder.resume_from(options.resume)
    name = broadcast_object_list([None if found is None else str(found)])[0]
    return None if name is None else Path(name)


def restore(session: Session) -> None:
    """Restore a checkpoint after verifying that recipe, data and base are unchanged."""
    path, engine = session.adapted.resumed_from, session.engine
    if path is None:
        session.notes.checks["resumed"] = "starting from step 0: no checkpoint was saved"
        return
    saved = files.read_json(path / "trainer.json")
    if not session.options.accept_changes:
        refuse_changes(session, path, saved)
    adapter = read_adapter(path / "adapter")
    with engine.averaged():  # as it was saved
        try:
            session.adapted.attached.load_state_dict(adapter.state_dict())
        except ValueError as error:
            raise CheckFailed(f"{path / 'adapter'} does not match the adapter of this recipe: {error}") from None
        engine.strategy.load_state(
            files.read_tensors(path / "optimizer.safetensors"),
            saved["optimizer"],
            lambda: engine.answer(engine.batch(session.inputs.train, [0])),
        )
    load_part_states(session.adapted.composition, files.read_tensors(path / "parts.safetensors"))
    if engine.accelerator.scaler is not None:
        engine.accelerator.scaler.load_state_dict(saved["scaler"])
    session.progress = progress_of(saved["progress"])
    if session.inputs.prepared.stream is not None:
        session.inputs.prepared.stream.load_state(saved["stream"])
    session.notes.checks["resumed"] = f"resumed from {path.name}"
    if session.folder is not None:
        session.folder.take_up(path, best_step=session.progress.best_step, keep=session.recipe.checkpoint.keep)


def progress_of(saved: dict[str, Any]) -> Progress:
    """What a checkpoint says of the run. One of an earlier version took a state for the best that the start beats."""
    progress = Progress(**saved)
    start, best = progress.start_loss, progress.best_loss
    if (
        progress.best_score is None
        and progress.best_step
        and start is not None
        and best is not None
        and not best < start
    ):
        progress.best_loss, progress.best_step = start, 0
    return progress


def refuse_changes(session: Session, path: Path, saved: dict[str, Any]) -> None:
    """Raises UsageError listing each key, and the data or base, that changes what is learnt and is not as it was."""
    before = recipes.load(Path(session.recipe.output_dir) / "resolved.yaml")
    decided = session.chosen  # resolved.yaml holds what was decided then where the recipe leaves it open
    changed = [
        f"{key}: was {then!r}, is now {decided.get(key, now)!r}"
        for key, then, now in recipes.differences(before, session.recipe)
        if not key.startswith(FREE_ON_RESUME) and then != decided.get(key, now)
    ]
    for what, then, now in [
        ("the data", saved["data"], session.inputs.prepared.key),
        ("the base model", saved["base"]["fingerprint"], session.base.info["fingerprint"]),
        *(
            (session.engine.losses.others[option].key, then, session.engine.losses.others[option].fingerprint)
            for option, then in saved.get("others", {}).items()
            if option in session.engine.losses.others
        ),
    ]:
        if then != now:
            changed.append(f"{what}: was {then[:16]}, is now {now[:16]} (hashes of the content and how it is read)")
    if changed:
        raise UsageError(
            f"changed since {path.name} was saved:\n  " + "\n  ".join(changed),
            "Undo the change, continue anyway with --accept-changes, or start from scratch with --fresh.",
        )
