"""Calibration with inputs that the test chooses, and runs that calibrate once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor, nn

from lrft.adapters.adapter import Site
from lrft.adapters.calibration import CalibrationContext


@dataclass
class Given(CalibrationContext):
    """A look at inputs that are made up: every site sees `given`, in this order."""

    given: Sequence[Tensor] = ()
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def make(cls, sites: Sequence[Site], given: Sequence[Tensor], weights: Sequence[Tensor] = ()) -> Self:
        named = {site.name: W for site, W in zip(sites, weights, strict=False)}
        nothing = nn.Linear(1, 1)
        return cls(
            nothing, lambda n: [], lambda b: torch.zeros(()), lambda b: 0, sites=sites, given=given, weights=named
        )

    def weight(self, site: Site) -> Tensor:
        return self.weights[site.name]

    def inputs(
        self, rows: int, collect: Callable[[str, Tensor], None], *, trained_only: bool = False
    ) -> dict[str, str]:
        for x in self.given:
            for site in self.sites:
                collect(site.name, x)
        return {site.name: site.name for site in self.sites}


def batches(rows: int = 6) -> list[dict[str, Tensor]]:
    """One row each, padded to different lengths."""
    made = []
    for row in range(rows):
        ids = tiny.tokens(rows=1, length=40, seed=row)
        mask = torch.ones_like(ids)
        mask[:, 40 - 3 * row :] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return made


def inputs_of(model: Any, given: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """(n, k) of every linear layer in the blocks, without padding, by hooks of our own."""
    seen: dict[str, list[Tensor]] = {}
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n}
    hooks = [
        m.register_forward_hook(lambda _, x, __, n=n: seen.setdefault(n, []).append(x[0][0].detach()))
        for n, m in modules.items()
    ]
    for batch in given:
        n = int(batch["attention_mask"].sum())
        model(input_ids=batch["input_ids"][:, :n])
    for hook in hooks:
        hook.remove()
    return {n: torch.cat(x) for n, x in seen.items()}


def no_more_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("looked again")

    for name in ("inputs", "weight", "gradients", "_gradients"):
        monkeypatch.setattr(CalibrationContext, name, refuse)


def resumes_exactly_without_looking(place: Place, monkeypatch: pytest.MonkeyPatch, *keys: str) -> Path:
    """A whole run; cut after step 3 and resumed it is the same, bit for bit."""
    keys = (*keys, "checkpoint.every=1", "checkpoint.keep=99")
    whole = place.train(*keys)
    part = runs.cut(whole, 3, place.root / "cut")
    no_more_looks(monkeypatch)
    place.train(*keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []
    return whole


def shapes(run: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in runs.tensors(run).items() if name.startswith("adapter/")}
