"""lrft as `lrft train` runs it: a recipe, `set_up`, real optimiser steps. What is known of its inside stands here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from performance.job import Job
from performance.recorder import Recorder
from performance.rows import PAIRS, load

RECIPE = """\
model: {model}
adapter: {{method: lora, rank: {rank}}}
data: {{train: {rows}, validation: none, cache: false, shuffle: false, max_length: {longest}}}
training:
  max_steps: 1000
  global_batch_size: {batch}
  learning_rate: {rate}
  lr_scheduler: constant
  warmup_steps: 0
  seed: {seed}
evaluation: {{every: none, at_start: false, samples: 0}}
checkpoint: {{every: none}}
output_dir: {folder}/run
"""


def run(job: Job, recorder: Recorder) -> None:
    """Options: `recipe`, keys to change (key=value); `pairs`, whether each two rows are one pair; `start`, a file for
    the adapter's first values."""
    from lrft.training.diagnostics import AdapterHealth
    from lrft.training.sanity_checks import MovementCheck
    from lrft.training.signals import StopSignals
    from lrft.training.step import train_step

    session = set_up(job)
    session.trackers = telling(recorder)
    if "start" in job.options:
        save_file(session.adapted.attached.state_dict(), job.options["start"])
    session.engine.model.train()
    movement = MovementCheck(session.adapted.attached, may_not_move=session.adapted.composition.may_not_move)
    health = AdapterHealth(session.adapted.attached)
    recorder.loaded(session.engine.model.parameters())
    with StopSignals(speak=False) as signals:
        for _ in range(job.steps):
            train_step(session, movement, health, signals)
            recorder.step()
    recorder.saw(**seen(session.inputs.train, session.inputs.batches.rows(0)))


def recipe_file(job: Job, folder: Path) -> Path:
    """The recipe of a job, in `folder`."""
    rows, pairs = Path(job.rows), job.options.get("pairs", False)
    made = load(rows)
    text = RECIPE.format(
        model=job.model,
        rank=job.rank,
        rows=rows.with_suffix(PAIRS if pairs else ".jsonl"),
        batch=len(made[0].rows) // (2 if pairs else 1),
        longest=max(batch.longest for batch in made),
        rate=f"{job.learning_rate:.10f}",
        seed=job.seed,
        folder=folder,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def set_up(job: Job) -> Any:
    """lrft's session for the job."""
    from lrft import recipe
    from lrft.training.setup import set_up
    from lrft.training.state import Options

    loaded = recipe.load(recipe_file(job, Path(job.folder)), job.options.get("recipe", []))
    return set_up(loaded, Options(quiet=True))


def telling(recorder: Recorder) -> Any:
    """Trackers that print nothing and give every step's loss to the recorder."""
    from lrft.tracking.base import Tracker
    from lrft.tracking.fan_out import Trackers

    class Listener(Tracker):
        name = "recorder"

        def log(self, kind: str, record: Mapping[str, Any], *, shown: bool = True) -> None:
            recorder.loss(record["loss"])

    silent = Trackers.silent()
    return Trackers(silent.console, None, [Listener()])


def seen(rows: Any, ids: np.ndarray) -> dict[str, int]:
    """What lrft's own data path has made of the rows of a step."""
    tokens, labelled = zip(*(sequence for i in ids for sequence in rows.sequences(int(i))), strict=True)
    return {
        "tokens": sum(map(len, tokens)),
        "labelled": int(sum(mask.sum() for mask in labelled)),
        "checksum": int(sum(t[mask].sum() for t, mask in zip(tokens, labelled, strict=True))),
    }
