"""Scores, decisions and penalty of dynamic rank distribution, against the formulas with whole matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lrft
from lrft.adapters.part import Run
from lrft.methods.dora_dynamic import DoraDynamic, shares

STEPS = 40


def attached(**options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 7)).double()
    return lrft.attach(model, {"method": {"dora-dynamic": options}, "rank": 2})


def tensors(r: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    shapes = {"A": (r, 9), "gate": (r,), "B": (8, r)}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def run_of(found: Any, step: int) -> Run:
    return Run(
        step, STEPS, found.model, found.modules, torch.optim.AdamW([nn.Parameter(torch.ones(1))]), 0, lambda t: t
    )


def test_scores_are_those_of_whole_matrices_and_do_not_see_the_balance_of_the_pair() -> None:
    own = tensors()
    whole = own["B"] @ torch.diag(own["gate"]) @ own["A"]
    parts = [own["gate"][i] * torch.outer(own["B"][:, i], own["A"][i]) for i in range(5)]
    expected = torch.stack([part.norm() / (whole.norm() + 1e-8) for part in parts])
    assert torch.allclose(shares(own), expected, rtol=1e-9)
    assert torch.allclose(shares(own | {"A": own["A"] / 3, "B": 3 * own["B"]}), expected, rtol=1e-7)
    apart = {"A": torch.linalg.qr(own["A"].T).Q.T, "gate": own["gate"], "B": torch.linalg.qr(own["B"]).Q}
    assert shares(apart).square().sum() == pytest.approx(1, abs=1e-6)
    assert not shares(own | {"gate": torch.zeros(5, dtype=torch.float64)}).any(), "the start"


def test_a_run_takes_away_the_surplus_by_a_cubic_curve_and_then_stands_still() -> None:
    found, part = attached(), DoraDynamic(every=1.0)
    averages = {site: torch.zeros(3, dtype=torch.float64) for site in found.modules}
    first, last = part.phases(STEPS)
    assert (first, last) == (6, 20)
    for step in range(STEPS):
        torch.manual_seed(step)
        for adapter in found.modules.values():
            for p in adapter.parameters():
                nn.init.normal_(p)
        before = {site: {n: t.clone() for n, t in a.tensors().items()} for site, a in found.modules.items()}
        part.after_step(run_of(found, step))
        gates = torch.cat([adapter.gate for adapter in found.modules.values()])
        if step + 1 <= last:
            for site, own in before.items():
                averages[site] = 0.9 * averages[site] + 0.1 * shares(own)
        due = int(2 * min(max(step + 1 - first, 0) / (last - first), 1) ** 3)  # 6 components built, 4 asked for
        assert int((gates == 0).sum()) == due, step + 1
        if due:
            order = torch.cat(list(averages.values())).argsort()
            assert set(gates.eq(0).nonzero().flatten().tolist()) == set(order[:due].tolist())


def test_the_penalty_is_the_mean_variance_inside_rows_and_columns_until_the_components_stay() -> None:
    found, part = attached(), DoraDynamic(spread=0.1)
    variances = []
    for adapter in found.modules.values():
        variances += [*adapter.A.var(dim=1), *adapter.B.var(dim=0)]
    assert part.loss(run_of(found, 0)).item() == pytest.approx(0.1 * sum(variances).item() / 12)
    assert part.loss(run_of(found, 20)) is None
    for adapter in found.modules.values():
        nn.init.ones_(adapter.A)
        nn.init.ones_(adapter.B)
    assert part.loss(run_of(found, 0)).item() == 0


def test_it_builds_half_again_as_many_components_as_asked_for() -> None:
    found = attached()
    assert {site.rank for site in found.sites} == {3}
    assert {site.scale for site in found.sites} == {4 / 3}
