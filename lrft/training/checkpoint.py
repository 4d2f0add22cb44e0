"""Checkpoints of a run: made, found again, and refused when recipe, data or base are no longer the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor

import lrft
from lrft import recipe as recipes
from lrft.adapters.storage import read_adapter, save_adapter
from lrft.errors import CheckFailed, UsageError
from lrft.optim.optimizer import with_state
from lrft.runs.folder import RunFolder
from lrft.training.state import Options, Progress, Trainer
from lrft.utils import files

# Keys that say how a run fits the machine or what it tells, not what it learns: free to change when resuming.
FREE_ON_RESUME = (
    "training.micro_batch_size",
    "evaluation.micro_batch_size",
    "logging.",
    "checkpoint.",
    "output_dir",
    "data.cache",
    "data.packing",
    "training.gradient_checkpointing",
    "training.activation_offload",
    "training.compile",
    "distributed.",
)


def save(trainer: Trainer, *, best: bool) -> None:
    """Make a checkpoint of everything that the rest of the run depends on."""
    trainer.watchdog.at("waiting for all processes before saving")
    trainer.accelerator.wait_for_everyone()
    optimizer = trainer.strategy.state()
    if trainer.folder is None:
        return
    trainer.reporter.doing("saving")
    trainer.folder.save(
        trainer.progress.step,
        lambda path: write_checkpoint(trainer, optimizer, path),
        keep=trainer.recipe.checkpoint.keep,
        best=best,
    )
    trainer.describe()


def write_checkpoint(trainer: Trainer, optimizer: Mapping[str, Tensor], path: Path) -> None:
    """optimizer: its state, from the run's strategy."""
    adapter = path / "adapter"
    adapter.mkdir()
    trainer.tokenizer.save_pretrained(adapter)
    save_adapter(
        trainer.attached,
        adapter,
        base=trainer.base_info,
        seed=trainer.recipe.training.seed,
        extra={"lrft": lrft.__version__},
        beside=[path.name for path in adapter.iterdir()],
    )
    files.write_tensors(path / "optimizer.safetensors", optimizer)
    states = {
        f"{part.name}/{key}": tensor for part in trainer.composition.parts for key, tensor in part.state().items()
    }
    files.write_tensors(path / "parts.safetensors", states)
    scaler = trainer.accelerator.scaler
    files.write_json(
        path / "trainer.json",
        {
            "progress": vars(trainer.progress),
            "data": trainer.prepared.key,
            "base": trainer.base_info,
            "optimizer": with_state(optimizer),
            "scaler": None if scaler is None else scaler.state_dict(),
        },
    )


def resume_point(folder: RunFolder | None, options: Options) -> Path | None:
    """The checkpoint that every process takes up, found by the first; None for a run from the start."""
    if options.resume is None:
        return None
    found = None if folder is None else folder.resume_from(options.resume)
    name = broadcast_object_list([None if found is None else str(found)])[0]
    return None if name is None else Path(name)


def restore(trainer: Trainer) -> None:
    """Take up a checkpoint again, after proving that recipe, data and base are those that it was made with."""
    path = trainer.resumed_from
    if path is None:
        trainer.checks["resumed"] = "from the start: nothing was saved before"
        return
    saved = files.read_json(path / "trainer.json")
    if not trainer.options.accept_changes:
        refuse_changes(trainer, path, saved)
    adapter = read_adapter(path / "adapter")
    try:
        trainer.attached.load_state_dict(adapter.state_dict())
    except ValueError as error:
        raise CheckFailed(f"{path / 'adapter'} is not the adapter of this recipe: {error}") from None
    trainer.strategy.load_state(
        files.read_tensors(path / "optimizer.safetensors"),
        saved["optimizer"],
        lambda: trainer.answer(trainer.collate([0])),
    )
    states = files.read_tensors(path / "parts.safetensors")
    for part in trainer.composition.parts:
        mine = f"{part.name}/"
        part.load_state({key.removeprefix(mine): t for key, t in states.items() if key.startswith(mine)})
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(saved["scaler"])
    trainer.progress = Progress(**saved["progress"])
    trainer.checks["resumed"] = f"resumed from {path.name}"
    if trainer.folder is not None:
        keep = trainer.recipe.checkpoint.keep
        trainer.folder.take_up(path, best_step=trainer.progress.best_step, keep=keep)


def refuse_changes(trainer: Trainer, path: Path, saved: dict[str, Any]) -> None:
    """Raises UsageError listing each key, and the data or base, that changes what is learnt and is not as it was."""
    before = recipes.load(Path(trainer.recipe.output_dir) / "resolved.yaml")
    decided = trainer.chosen  # resolved.yaml holds what was decided then where the recipe leaves it open
    changed = [
        f"{key}: {then!r} then, {decided.get(key, now)!r} now"
        for key, then, now in recipes.differences(before, trainer.recipe)
        if not key.startswith(FREE_ON_RESUME) and then != decided.get(key, now)
    ]
    for what, then, now in [
        ("the data", saved["data"], trainer.prepared.key),
        ("the base model", saved["base"]["fingerprint"], trainer.base_info["fingerprint"]),
    ]:
        if then != now:
            changed.append(f"{what}: {then[:16]} then, {now[:16]} now (hashes of the content)")
    if changed:
        raise UsageError(
            f"not what {path.name} was made with:\n  " + "\n  ".join(changed),
            "Undo the change, go on all the same with --accept-changes, or start afresh with --fresh.",
        )
