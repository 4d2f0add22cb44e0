"""Inits from the gradient of the loss: the gradient itself, by autograd, and runs that compute it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor

import lrft
from lrft.adapters import compose
from lrft.adapters.calibration import CalibrationContext
from lrft.objectives.cross_entropy import trained_tokens
from lrft.objectives.sft import TokenLoss

RANK = 3
TARGETS = ["q_proj", "v_proj", "down_proj"]
NAMES = [
    *(f"model.layers.{i}.{place}" for i in (0, 1) for place in ("self_attn.q_proj", "self_attn.v_proj")),
    *(f"model.layers.{i}.mlp.down_proj" for i in (0, 1)),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place.make(tmp_path_factory.mktemp("observing"))
    runs.write_rows(made.root / "train.jsonl", runs.rows(9))
    return made


def batch(rows: int) -> dict[str, Tensor]:
    """Of one row, 9 tokens: every gradient has rank 9 at most, and a sketch of 4 * 3 vectors holds all of it."""
    ids = tiny.tokens(rows=rows, length=9, seed=4)
    return {"input_ids": ids, "labels": ids}


def gradients(rows: int, factor: float = 1.0) -> dict[str, Tensor]:
    """(d, k) by layer, by autograd on the weights of a model without adapters."""
    model = tiny.make("llama").double()
    weights = [model.get_submodule(name).weight for name in NAMES]
    found = torch.autograd.grad(factor * model(**batch(rows)).loss, weights)
    return dict(zip(NAMES, found, strict=True))


def attach(method: Any, rows: int = 1, **more: Any) -> Any:
    words = {"method": method, "rank": RANK, "target_modules": TARGETS, **more}
    return lrft.attach(tiny.make("llama").double(), words, batches=[batch(rows)])


def observed(method: Any, factor: float) -> compose.CalibrationResult:
    """What the first part that looks sees when the loss is `factor` times what it is."""
    model = tiny.make("llama").double()
    loss = TokenLoss(model)
    context = CalibrationContext(model, lambda rows: [batch(1)], lambda given: factor * loss(given), trained_tokens)
    composition = compose.compose([(method, {})])
    context.sites = attach(method).sites
    return next(
        part.calibrate(context) for part in composition.parts if type(part).calibrate is not compose.Part.calibrate
    )


def truncated(G: Tensor, r: int) -> Tensor:
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    return U[:, :r] @ torch.diag(S[:r]) @ Vh[:r]


def near(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Within `tolerance` of b's largest entry: the norms of the model compute in float32."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def resumed_without_a_look(place: Place, monkeypatch: pytest.MonkeyPatch, method: str, part: type) -> Path:
    """A run, checked to be resumed to the same bits after its second step though nothing can be observed then."""
    keys = (f"adapter.method={method}", "checkpoint.every=2", "checkpoint.keep=9")
    whole = place.train(*keys, out=part.__name__)
    cut = runs.cut(whole, 2, place.root / f"{part.__name__}-cut")
    monkeypatch.setattr(part, "calibrate", lambda *_: pytest.fail("a resumed run looks again"))
    place.train(*keys, out=cut.name, resume="last")
    assert runs.differing(runs.tensors(cut), runs.tensors(whole)) == []
    return whole


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in runs.records(run)]
