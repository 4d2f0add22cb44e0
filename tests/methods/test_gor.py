"""GOR: the penalty against sums over groups that are written out, and what it is zero for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters.part import Run
from lrft.errors import RecipeError
from lrft.methods.gor import Gor


def wide(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def far(w: Tensor) -> Tensor:
    """|w w' - I|^2 of the smaller product."""
    gram = w @ w.T if len(w) < w.shape[1] else w.T @ w
    return (gram - torch.eye(len(gram), dtype=w.dtype)).square().sum()


@pytest.mark.parametrize(("rows", "columns", "n"), [(24, 3, 3), (24, 12, 3), (16, 16, 4), (12, 5, 1)])
def test_both_modes_are_sums_over_groups(rows: int, columns: int, n: int) -> None:
    F = wide(rows, columns)
    size = rows // n
    inter = torch.stack([far(F[i * size : (i + 1) * size]) for i in range(n)]).sum()
    intra = torch.stack([far(F[j::size]) for j in range(size)]).sum()
    assert torch.allclose(Gor(groups=n).distance(F), inter, rtol=1e-12)
    assert torch.allclose(Gor(groups=n, mode="intra").distance(F), intra, rtol=1e-12)
    shuffled = torch.cat([F[j::size] for j in range(size)])
    if size <= rows // 4:  # as many groups are allowed
        assert torch.allclose(Gor(groups=size).distance(shuffled), intra, rtol=1e-12)


def test_orthonormal_rows_cost_nothing_and_zero_has_no_slope() -> None:
    F = torch.linalg.qr(wide(30, 8)).Q.T
    for mode in ("inter", "intra"):
        assert Gor(groups=2, mode=mode).distance(F) < 1e-24
        zero = torch.zeros(12, 4, dtype=torch.float64, requires_grad=True)
        Gor(groups=3, mode=mode).distance(zero).backward()
        assert not zero.grad.any()


def test_the_loss_is_the_sum_over_layers_of_one_factor() -> None:
    layers = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 12)).double()
    attached = lrft.attach(layers, {"method": {"gor": {"strength": 0.5, "groups": 2}}, "rank": 3})
    with torch.no_grad():
        for p in attached.trained().values():
            p.add_(wide(*p.shape))
    loss = Gor(strength=0.5, groups=2).loss(Run(0, 1, layers, attached.modules, None, 0, lambda t: t))
    B = [adapter.tensors()["B"] for adapter in attached.modules.values()]
    halves = [far(half) for F in B for half in F.chunk(2)]
    assert torch.allclose(loss, 0.5 * torch.stack(halves).sum(), rtol=1e-12)


def test_groups_that_do_not_come_out_even_are_refused() -> None:
    with pytest.raises(RecipeError, match="3 groups do not divide the 14 rows of B"):
        lrft.attach(nn.Sequential(nn.Linear(6, 14)), {"method": {"gor": {"groups": 3}}, "rank": 2})
