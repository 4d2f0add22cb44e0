"""AMP and SAM: where the gradient is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from passes import Problem, curved
from torch import Tensor

from lrft import recipe
from lrft.adapters import compose
from lrft.methods.adversarial_model_perturbation import AdversarialModelPerturbation


def sam() -> Any:
    return compose.compose_section(recipe.parse_adapter({"method": "sam"})).gradient_owner


def at(trained: list[Any], loss: Any, changes: list[Tensor]) -> list[Tensor]:
    """The gradient at the trained tensors plus `changes`."""
    before = [p.detach().clone() for p in trained]
    with torch.no_grad():
        for p, change in zip(trained, changes, strict=True):
            p.add_(change)
    found = torch.autograd.grad(loss(), trained)
    with torch.no_grad():
        for p, value in zip(trained, before, strict=True):
            p.copy_(value)
    return list(found)


def test_sam_takes_the_gradient_at_the_end_of_one_step_of_length_rho() -> None:
    trained, loss = curved()
    g = torch.autograd.grad(loss(), trained)
    length = torch.cat([each.flatten() for each in g]).norm()
    expected = at(trained, loss, [0.05 * each / length for each in g])
    found = Problem(trained, loss).compose(sam())
    assert all(torch.allclose(found[p], e, rtol=1e-9) for p, e in zip(trained, expected, strict=True))
    assert not any(torch.allclose(found[p], own, rtol=1e-6) for p, own in zip(trained, g, strict=True))


@pytest.mark.parametrize(("eps", "steps"), [(0.5, 1), (0.5, 3), (100.0, 2)])
def test_each_tensor_has_a_ball_of_its_own_as_in_the_released_code(eps: float, steps: int) -> None:
    trained, loss = curved()
    change = [torch.zeros_like(p) for p in trained]
    g = list(torch.autograd.grad(loss(), trained))
    for _ in range(steps):
        change = [d + 0.2 * each for d, each in zip(change, g, strict=True)]
        change = [d * min(1.0, eps / d.norm().item()) for d in change]
        g = at(trained, loss, change)
    found = Problem(trained, loss).compose(AdversarialModelPerturbation(eps=eps, steps=steps, ascent_rate=0.2))
    assert all(torch.allclose(found[p], e, rtol=1e-9) for p, e in zip(trained, g, strict=True))


@pytest.mark.parametrize("ball", ["tensor", "all"])
@pytest.mark.parametrize("ascent", ["gradient", "normalized"])
def test_it_stays_in_the_ball_climbs_and_comes_back(ball: Any, ascent: Any) -> None:
    trained, loss = curved()
    before = [p.detach().clone() for p in trained]
    start, seen = loss().item(), []

    def watched() -> Tensor:
        now = [p.detach() - old for p, old in zip(trained, before, strict=True)]
        seen.append((loss().item(), now))
        return loss()

    part = AdversarialModelPerturbation(eps=0.02, steps=4, ascent=ascent, ball=ball, ascent_rate=0.5)
    Problem(trained, watched).compose(part)
    assert len(seen) == 5
    for _, change in seen:
        lengths = [d.norm().item() for d in change]
        assert max(lengths) <= 0.02 * (1 + 1e-9)
        assert ball == "tensor" or sum(each**2 for each in lengths) ** 0.5 <= 0.02 * (1 + 1e-9)
    assert all(height > start for height, _ in seen[1:])
    assert all(torch.equal(p.detach(), old) for p, old in zip(trained, before, strict=True))


def test_a_ball_of_no_size_is_ordinary_training() -> None:
    trained, loss = curved()
    problem = Problem(trained, loss)
    found = problem.compose(AdversarialModelPerturbation(eps=0.0))
    assert all(torch.equal(found[p], g) for p, g in zip(trained, torch.autograd.grad(loss(), trained), strict=True))
    assert problem.asked == ["own"]


def test_a_gradient_of_zero_moves_nothing() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    found = Problem([p], lambda: ((p - 1) ** 2).sum()).compose(sam())
    assert found[p].tolist() == [0.0, 0.0, 0.0]
