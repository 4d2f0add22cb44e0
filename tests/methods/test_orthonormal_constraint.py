"""The singular values of an update, drawn to their mean."""

from __future__ import annotations

import pytest
import torch

from lrft.adapters.adapter import Factors
from lrft.methods.orthonormal_constraint import OrthonormalConstraint, singular_values


def factors(d: int = 7, k: int = 9, r: int = 3, s: float = 1.5) -> Factors:
    generator = torch.Generator().manual_seed(1)
    B = torch.randn(d, r, dtype=torch.float64, generator=generator)
    A = torch.randn(r, k, dtype=torch.float64, generator=generator)
    return Factors(B.requires_grad_(), A.requires_grad_(), s)


@pytest.mark.parametrize(("d", "k", "r"), [(7, 9, 3), (9, 7, 3), (3, 8, 5)])
def test_values_and_gradients_are_those_of_the_dense_update(d: int, k: int, r: int) -> None:
    f = factors(d, k, r)
    part = OrthonormalConstraint(tau=0.2)
    dense = torch.linalg.svdvals(f.scale * f.B @ f.A)[: min(d, k, r)]
    assert torch.allclose(singular_values(f).sort(descending=True).values, dense, rtol=1e-10)
    ours = torch.autograd.grad(part.term(singular_values(f)), (f.B, f.A))
    theirs = torch.autograd.grad(part.term(dense), (f.B, f.A))
    assert any(g.any() for g in theirs)
    assert all(torch.allclose(*both, atol=1e-10) for both in zip(ours, theirs, strict=True))


def test_no_cost_inside_the_band_and_descent_leads_there() -> None:
    part = OrthonormalConstraint(tau=0.1)
    assert part.term(torch.tensor([0.91, 1.0, 1.09])) == 0
    assert part.term(torch.tensor([0.5, 1.0, 1.5])) == pytest.approx(2 * 0.4**2)
    f = factors()
    for _ in range(300):
        gradients = torch.autograd.grad(part.term(singular_values(f)), (f.B, f.A))
        with torch.no_grad():
            for p, g in zip((f.B, f.A), gradients, strict=True):
                p -= 0.02 * g
    values = singular_values(f).detach()
    assert values.max() / values.min() < 1.1 / 0.9 + 0.01


def test_an_update_of_zero_costs_nothing_and_has_no_slope() -> None:
    f = factors()
    B = torch.zeros_like(f.B).requires_grad_()
    value = OrthonormalConstraint().term(singular_values(Factors(B, f.A, 1.0)))
    value.backward()
    assert value == 0
    assert not B.grad.any()
