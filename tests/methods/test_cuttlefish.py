"""Stable ranks of updates, and the cut that follows from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lrft
from lrft.adapters.part import Run
from lrft.errors import RecipeError
from lrft.methods.cuttlefish import WINDOW, Cuttlefish, stable_rank


def attached(**options: Any) -> Any:
    """Updates with singular values 1, 1/2, 1/4, ... and four of one size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 9)).double()
    found = lrft.attach(model, {"method": {"cuttlefish": options}, "rank": 2})
    for adapter, S in zip(found.modules.values(), (0.5 ** torch.arange(4.0), torch.ones(4)), strict=True):
        with torch.no_grad():
            mixed = torch.randn(4, 4, dtype=torch.float64)
            adapter.B.copy_(nn.init.orthogonal_(torch.empty_like(adapter.B)) * S.double() @ mixed)
            adapter.A.copy_(torch.linalg.solve(mixed, nn.init.orthogonal_(torch.empty_like(adapter.A))))
    return found


def run_of(found: Any, step: int, total: int = 100) -> Run:
    optimizer = torch.optim.AdamW(found.trained().values())
    return Run(step, total, found.model, found.modules, optimizer, 0, lambda t: t)


def ranks(found: Any) -> list[int]:
    return [int(adapter.gate.sum()) for adapter in found.modules.values()]


def test_the_stable_rank_is_that_of_the_dense_product_and_one_at_the_start() -> None:
    found = attached()
    for adapter, expected in zip(found.modules.values(), (85 / 64, 4.0), strict=True):
        S = torch.linalg.svdvals(adapter.delta_weight())
        assert stable_rank(adapter.tensors()).item() == pytest.approx(((S**2).sum() / S[0] ** 2).item())
        assert stable_rank(adapter.tensors()).item() == pytest.approx(expected)
        assert stable_rank({"A": adapter.A, "B": torch.zeros_like(adapter.B)}).item() == 1


@pytest.mark.parametrize(("rule", "expected"), [("scaled", [1, 4]), ("stable", [2, 4])])
def test_the_cut_keeps_the_leading_directions_of_each_update(rule: str, expected: list[int]) -> None:
    found, part = attached(ranks=rule), Cuttlefish(ranks=rule, latest=0.1, every=1.0)  # type: ignore[arg-type]
    before = [adapter.delta_weight().detach() for adapter in found.modules.values()]
    for step in range(9):
        part.after_step(run_of(found, step))
        assert ranks(found) == [4, 4]
    part.after_step(run_of(found, 9))
    assert ranks(found) == expected
    for adapter, whole, r in zip(found.modules.values(), before, expected, strict=True):
        U, S, Vh = torch.linalg.svd(whole)
        if r < 4:
            assert torch.allclose(adapter.delta_weight(), U[:, :r] * S[:r] @ Vh[:r], atol=1e-12)
        else:
            assert torch.allclose(adapter.delta_weight(), whole, atol=1e-12)
        assert torch.allclose(adapter.A @ adapter.A.T, adapter.B.T @ adapter.B, atol=1e-12), "balanced"


def test_it_waits_until_no_stable_rank_changes_any_more_and_cuts_once() -> None:
    found = attached()
    part, last = Cuttlefish(latest=1.0, every=1.0), found.modules["1"]
    whole = last.B.detach().clone()
    for step in range(60):
        if step < 30:  # one layer's update changes from step to step, the other's does not
            with torch.no_grad():
                last.B.copy_(whole if step % 2 else whole[:, :1].expand(9, 4))
        again = Cuttlefish(latest=1.0, every=1.0)
        again.load_state(part.state())  # as a resumed run
        part = again
        part.after_step(run_of(found, step))
        if "cut" in part.memory:
            break
    assert 30 < step < 59
    assert step >= WINDOW
    cut = ranks(found)
    part.after_step(run_of(found, step + 1))
    assert ranks(found) == cut


def test_more_components_than_a_layer_has_directions_are_refused() -> None:
    with pytest.raises(RecipeError, match="has no 10 singular vectors: lower rank or over"):
        lrft.attach(nn.Sequential(nn.Linear(9, 8)), {"method": "cuttlefish", "rank": 5})
