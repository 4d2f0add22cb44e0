"""Norm loss against norms of dense rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import lrft
from lrft.adapters.adapter import Factors
from lrft.adapters.part import Run
from lrft.methods.norm_loss import NormLoss, moved


def layers() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 7)).double()


def run_of(attached: Any) -> Run:
    return Run(0, 1, attached.model, attached.modules, None, 0, lambda t: t)


def test_the_weights_form_is_that_of_dense_rows() -> None:
    attached = lrft.attach(layers(), {"method": "norm-loss", "rank": 2})
    part = NormLoss(strength=0.3)
    assert part.loss(run_of(attached)) == 0, "the update is zero"
    expected = []
    for p in attached.trained().values():
        nn.init.normal_(p)
    for name, layer in attached.layers().items():
        W = layer.base.weight
        change = (W + attached.modules[name].delta_weight()).norm(dim=1) - W.norm(dim=1)
        expected.append(change.square().sum())
    expected = 0.3 * torch.stack(expected).sum()
    found = part.loss(run_of(attached))
    assert torch.allclose(found, expected, rtol=1e-9)
    wanted = list(attached.trained().values())
    ours, theirs = torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted)
    assert all(torch.allclose(*both, rtol=1e-8) for both in zip(ours, theirs, strict=True))


def test_the_factors_form_has_radial_gradients() -> None:
    attached = lrft.attach(layers(), {"method": {"norm-loss": {"of": "factors"}}, "rank": 2})
    for p in attached.trained().values():
        nn.init.normal_(p)
    NormLoss(strength=0.3, of="factors").loss(run_of(attached)).backward()
    for name, p in attached.trained().items():
        axis = 1 if name.endswith("A") else 0
        length = p.norm(dim=axis, keepdim=True)
        assert torch.allclose(p.grad, 2 * 0.3 * (length - 1) * p / length, rtol=1e-9)


def test_rows_of_zeros_have_finite_gradients() -> None:
    W = torch.zeros(3, 4, dtype=torch.float64)
    B, A = torch.zeros(3, 2, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64)
    B.requires_grad_()
    moved(W, Factors(B, A, 1.0)).backward()
    assert torch.equal(B.grad, torch.zeros_like(B))
