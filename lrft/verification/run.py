"""`lrft verify RUN`: correctness checks on a small slice of the run's data.

packed        rows laid end to end answer as each row does alone
accumulation  one pass over N rows and N passes over one row give the same gradient
merged        the merged folder answers as base + adapter do
resumed       a stopped and resumed run ends bit-identical to an uninterrupted one
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrft import data
from lrft import recipe as recipes
from lrft.adapters.attached import Attached
from lrft.adapters.storage import load_adapter, read_adapter
from lrft.errors import CheckFailed
from lrft.export.merge import merge_adapter
from lrft.loading.from_recipe import load_data, objective_of
from lrft.loading.others import find_others, load_others
from lrft.loading.saved import load_as_trained
from lrft.model.hub import find_model
from lrft.objectives.base import LossModule, Objective, look_ahead
from lrft.objectives.packing import kept_apart, packed_form
from lrft.recipe import EvaluationSection, Recipe
from lrft.runs.locate import trusts_remote_code
from lrft.training.run import train
from lrft.training.state import Options
from lrft.utils import files, hardware
from lrft.utils.text import count
from lrft.verification.merge import verify_merge

ROWS = 8
STEPS = 4
# Relative differences that rounding may make in float32.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Finding:
    """One check: the measured value and its upper limit. `skipped` says why there is none."""

    name: str
    figure: float
    limit: float
    text: str
    skipped: bool = False

    @property
    def holds(self) -> bool:
        return self.skipped or self.figure <= self.limit  # False for NaN

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}


def verify_run(run: Path, adapter: Path, *, tell: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
    """Test all four. Raises CheckFailed, with the figures, after the last one when any does not hold."""
    recipe = recipes.load(run / "resolved.yaml")
    source = find_model(recipe.model.name, recipe.model.revision)
    tokenizer, prepared = load_data(recipe, source)
    rows = prepared.train.slice(np.argsort(prepared.train.lengths, kind="stable")[:ROWS])
    findings = []
    with scratch(run) as folder:
        # One after the other, so that no two hold a model at the same time.
        for test in (
            lambda: packed(recipe, source, adapter, rows),
            lambda: accumulation(recipe, source, adapter, rows, tokenizer),
            lambda: merged(run, adapter, source, folder),
            lambda: resumed(recipe, folder),
        ):
            findings.append(test())
            tell(findings[-1])
    failed = [f"{f.name}: {f.text}" for f in findings if not f.holds]
    if failed:
        raise CheckFailed("a correctness check failed for this run:\n  " + "\n  ".join(failed))
    return findings


@contextmanager
def scratch(run: Path) -> Iterator[Path]:
    """A folder inside the run's, removed afterwards."""
    folder = run / ".verify"
    shutil.rmtree(folder, ignore_errors=True)
    with files.room_for(run):
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def adapted(recipe: Recipe, source: Path, adapter: Path) -> tuple[Any, Attached]:
    """The model in float32, where a difference is the tool's and not rounding's, with the run's adapter."""
    saved = read_adapter(adapter)
    model = load_as_trained(saved, source, trust_remote_code=recipe.model.trust_remote_code, widen=True)
    attached = load_adapter(model, adapter)
    return model, attached


def packed(recipe: Recipe, source: Path, adapter: Path, rows: data.Rows) -> Finding:
    if recipe.data.packing is not True:
        return Finding("packed", 0.0, ROUNDING, "skipped: this run does not use packing", True)
    model, _ = adapted(recipe, source, adapter)
    form = packed_form(model)
    sequences = [tokens for i in range(len(rows)) for tokens, _ in rows.sequences(i)]
    ids = [torch.from_numpy(tokens.astype(np.int64)).to(model.device) for tokens in sequences]
    apart = kept_apart(model, ids, form)
    text = (
        f"{count(len(ids), 'row')} packed vs. single rows: logits differ by {apart.difference:.1e} of the largest, "
        f"and change by {apart.moved:.1e} when a row's neighbour gets other tokens"
    )
    if apart.leaks:
        return Finding("packed", apart.moved, apart.allowed, text)
    return Finding("packed", apart.difference, ROUNDING, text)


def accumulation(recipe: Recipe, source: Path, adapter: Path, rows: data.Rows, tokenizer: Any) -> Finding:
    model, attached = adapted(recipe, source, adapter)
    objective = objective_of(recipe)
    losses = objective.module(model)
    losses.head = read_adapter(adapter).head
    losses.as_base = lambda: attached.as_base(model)
    found = find_others(recipe, source, tokenizer, rows, trained=True)
    losses.others = load_others(recipe, found, model, hardware.computation(recipe.training.precision), rows)
    together = gradient(losses, attached, objective, rows, micro=len(rows))
    apart = gradient(losses, attached, objective, rows, micro=1)
    difference = (norm(together - apart) / norm(together)) if norm(together) else math.nan
    return Finding(
        "accumulation",
        difference,
        ROUNDING,
        f"1 x {count(len(rows), 'row')} against {len(rows)} x 1: gradients differ by {difference:.1e} of their norm",
    )


def gradient(losses: LossModule, attached: Attached, objective: Objective, rows: data.Rows, micro: int) -> Tensor:
    """The gradient of the objective's mean loss over all rows, all trained tensors end to end."""
    trained = list(attached.trained().values())
    for parameter in trained:
        parameter.grad = None
    pad = 0 if losses.head is None or losses.head.pad_id is None else losses.head.pad_id
    losses.model.eval()  # without dropout, whose masks would differ
    batches = [
        {k: v.to(trained[0].device) for k, v in objective.collate(rows, ids, pad_id=pad, form="padded").items()}
        for ids in (list(range(len(rows)))[at : at + micro] for at in range(0, len(rows), micro))
    ]
    weight = sum(map(objective.batch_weight, batches))
    look_ahead(losses, ((batch, True) for batch in batches), lambda sums: sums)
    for batch in batches:
        (losses(batch) / weight).backward()
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros_like(p).flatten() for p in trained])


def norm(vector: Tensor) -> float:
    return torch.linalg.vector_norm(vector).item()


def merged(run: Path, adapter: Path, source: Path, folder: Path) -> Finding:
    """Check the run's merged folder, or one made for the check where there is none."""
    saved = read_adapter(adapter)
    if not all(saved.build(site).mergeable for site in saved.sites):
        return Finding("merged", 0.0, 0.0, "skipped: this adapter is not mergeable", True)
    # Into the original base an adapter from a quantised one is not to answer as it did.
    into = "original" if saved.quantization == "none" else "dequantized"
    out = run / "merged"
    if into == "dequantized" or not out.is_dir():
        out = folder / "merged"
        merge_adapter(adapter, out, base_model=str(source), into=into, trust_remote_code=trusts_remote_code(adapter))
    difference = verify_merge(out, adapter, base_folder=source, tolerance=math.inf, into=into)
    limit = difference.limit_of_dtype
    return Finding(
        "merged",
        difference.relative,
        limit,
        f"merged vs. adapter on {count(difference.rows, 'row')}: logits differ by {difference.relative:.1e} of the "
        f"largest, same {difference.choice} {difference.same_first:.2%}",
    )


def resumed(recipe: Recipe, folder: Path) -> Finding:
    """A few steps of the run's recipe, uninterrupted vs. resumed, compared bit for bit."""
    short = shortened(recipe, folder / "straight")
    if torch.cuda.is_available():
        return Finding("resumed", 0.0, 0.0, "skipped on a GPU, where sums are not bit-identical between runs", True)
    straight = train(short, Options(quiet=True))
    stopped = folder / "stopped"
    shutil.copytree(straight, stopped, symlinks=True)
    last = max((stopped / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
    shutil.rmtree(last)
    again = train(shortened(recipe, stopped), Options(resume="last", quiet=True))
    one, two = (read_adapter(path / "last").tensors for path in (straight, again))
    unequal = [
        f"{site}.{name}" for site in one for name in one[site] if not torch.equal(one[site][name], two[site][name])
    ]
    steps = short.training.max_steps
    text = f"{steps} steps, stopped after {int(last.name[5:]) - 1} and resumed: {len(unequal)} tensors differ"
    return Finding("resumed", float(len(unequal)), 0.0, text)


def shortened(recipe: Recipe, out: Path) -> Recipe:
    """The recipe for a few steps on a few rows, into `out`."""
    entries = tuple(entry.model_copy(update={"limit": min(entry.limit or 64, 64)}) for entry in recipe.data.train)
    few = {"train": entries, "validation": "none", "too_long": "drop"}
    training = {
        "max_steps": STEPS,
        "epochs": None,
        "early_stopping": "none",
        "global_batch_size": min(recipe.training.global_batch_size, 4),
        "precision": "fp32" if hardware.computation("auto") == "fp32" else recipe.training.precision,
    }
    return recipe.model_copy(
        update={
            "evaluation": EvaluationSection(every="none", samples=0),
            "data": recipe.data.model_copy(update=few),
            "training": recipe.training.model_copy(update=training),
            "checkpoint": recipe.checkpoint.model_copy(update={"every": 1, "keep": STEPS}),
            "output_dir": str(out),
        }
    )
