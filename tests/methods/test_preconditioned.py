"""Preconditioned gradients against PEFT's optimiser, and what the paper says of their steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.part import Run
from lrft.errors import RecipeError


def layers(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(14, 9), nn.Tanh(), nn.Linear(9, 5)).to(dtype)


def attach(options: dict[str, Any], *, scale: float = 2.0, filled: bool = True) -> Any:
    overrides = {"2": {"rank": 2, "scale": scale}}
    words = {"method": {"preconditioned": options}, "rank": 3, "scale": scale, "overrides": overrides}
    attached = lrft.attach(layers(), words)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in attached.trained().items():
            if filled or name.endswith("A"):
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return attached


def transform(attached: Any) -> None:
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    run = Run(0, 10, attached.model, attached.modules, None, 0, lambda t: t)
    for part in composition.parts:
        part.after_backward(run)


def full_gradient(pair: Any) -> Tensor:
    """A random G by the weight, and with it the gradients that A and B have."""
    G = torch.randn(pair.site.d, pair.site.k, dtype=pair.A.dtype, generator=torch.Generator().manual_seed(7))
    pair.A.grad = (pair.site.scale * pair.B.T @ G).detach()
    pair.B.grad = (pair.site.scale * G @ pair.A.T).detach()
    return G


def step_of(pair: Any) -> Tensor:
    """What a small step of plain gradient descent does to B A, over its rate."""
    return (pair.B @ pair.A.grad + pair.B.grad @ pair.A).detach()


@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_steps_are_those_of_peft(optimizer: Any, filled: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_riemannian_optimizer

    attached = attach({"damping": 0.05}, filled=filled)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"], rank_pattern={"2": 2}, alpha_pattern={"2": 4})
    theirs = get_peft_model(layers(), config).double()
    for name, pair in attached.modules.items():
        other = theirs.base_model.model.get_submodule(name)
        with torch.no_grad():
            other.lora_A["default"].weight.copy_(pair.A)
            other.lora_B["default"].weight.copy_(pair.B)
    mine = optimizer(attached.trained().values(), lr=1e-2, weight_decay=0.1)
    reference = create_riemannian_optimizer(theirs, optimizer, lr=1e-2, reg=0.05, weight_decay=0.1)
    x = torch.randn(6, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for _ in range(4):
        for model, stepped in ((attached.model, mine), (theirs, reference)):
            stepped.zero_grad()
            (model(x) - 1).square().sum().backward()
            if stepped is mine:
                transform(attached)
            stepped.step()
    for name, pair in attached.modules.items():
        other = theirs.base_model.model.get_submodule(name)
        assert torch.allclose(pair.A, other.lora_A["default"].weight, rtol=1e-8, atol=1e-10), name
        assert torch.allclose(pair.B, other.lora_B["default"].weight, rtol=1e-8, atol=1e-10), name
        assert pair.B.any(), name


def test_without_damping_the_weight_steps_along_both_projections() -> None:
    attached = attach({"damping": 1e-14})
    for pair in attached.modules.values():
        G = full_gradient(pair)
        transform(attached)
        A, B = pair.A.detach(), pair.B.detach()
        expected = B @ torch.linalg.pinv(B) @ G + G @ torch.linalg.pinv(A) @ A
        assert torch.allclose(step_of(pair), pair.site.scale * expected, atol=1e-10)
        pair.A.grad = pair.B.grad = None


@pytest.mark.parametrize("damping", [1e-9, 0.01, 100.0])
def test_the_loss_falls(damping: float) -> None:
    attached = attach({"damping": damping})
    pair = attached.modules["0"]
    full_gradient(pair)
    own_a, own_b = pair.A.grad.clone(), pair.B.grad.clone()
    transform(attached)
    assert (own_a * pair.A.grad).sum() > 0
    assert (own_b * pair.B.grad).sum() > 0


def test_without_damping_the_basis_of_the_pair_does_not_change_the_step() -> None:
    change = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 2 * torch.eye(3)
    steps = []
    for basis in (torch.eye(3, dtype=torch.float64), change):
        attached = attach({"damping": 1e-14})
        pair = attached.modules["0"]
        with torch.no_grad():
            pair.A.copy_(torch.linalg.solve(basis, pair.A))
            pair.B.copy_(pair.B @ basis)
        full_gradient(pair)
        transform(attached)
        steps.append(step_of(pair))
    assert torch.allclose(*steps, atol=1e-9)


def test_where_B_is_zero_the_gradient_of_A_stays_zero() -> None:
    attached = attach({}, filled=False)
    pair = attached.modules["0"]
    full_gradient(pair)
    transform(attached)
    assert not pair.A.grad.any()
    assert pair.B.grad.any()


def test_one_change_of_the_gradients_at_a_time_and_only_of_a_pair() -> None:
    for others, sentence in (
        (
            ["lora+"],
            "set the learning rates of A and B|change the gradients of A and B",
        ),
        (["lora-pro"], "both change the gradients of A and B"),
        (["mora"], "preconditioned requires a pair of factors A and B; mora has no such pair"),
        (["sorsa"], "preconditioned requires a pair of factors A and B; sorsa has no such pair"),
        (["lora-fa"], "preconditioned requires a pair of factors A and B; lora-fa has no such pair"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(layers(), {"method": ["preconditioned", *others], "rank": 2})
