"""F-GR: the product with the Hessian, as autograd makes it."""

from __future__ import annotations

import pytest
import torch
from passes import Problem, curved, quadratic

from lrft.methods.gradient_regularization import GradientRegularization


@pytest.mark.parametrize("eps", [1e-3, 0.3, 4.0])
def test_on_a_quadratic_it_is_the_gradient_of_the_penalised_loss_for_any_eps(eps: float) -> None:
    w, H, loss = quadratic()
    found = Problem([w], loss).compose(GradientRegularization(gamma=0.7, eps=eps))[w]
    assert torch.allclose(found, H @ w + 0.7 * H @ H @ w, rtol=1e-9)


def test_for_small_eps_it_is_the_gradient_of_the_penalised_loss() -> None:
    trained, loss = curved()
    found = Problem(trained, loss).compose(GradientRegularization(gamma=0.5, eps=1e-6))
    g = torch.autograd.grad(loss(), trained, create_graph=True)
    penalised = loss() + 0.5 / 2 * sum((each**2).sum() for each in g)
    for p, expected in zip(trained, torch.autograd.grad(penalised, trained), strict=True):
        assert torch.allclose(found[p], expected, rtol=1e-4, atol=1e-6)


def test_without_weight_it_is_the_gradient_and_nothing_is_moved() -> None:
    trained, loss = curved()
    before = [p.detach().clone() for p in trained]
    problem = Problem(trained, loss)
    found = problem.compose(GradientRegularization(gamma=0.0))
    for p, g, start in zip(trained, torch.autograd.grad(loss(), trained), before, strict=True):
        assert torch.equal(found[p], g)
        assert torch.equal(p.detach(), start)
    assert problem.asked == ["own", "own"]
