"""The largest singular value by power iteration, against the dense decomposition."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import lrft
from lrft.adapters.part import Run
from lrft.methods.nuclear_norm import factors_of
from lrft.methods.spectral_reg import SpectralReg


def attached() -> Any:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(9, 7)).double()
    # A gap below the largest singular value: 30 iterations then find it to rounding.
    U, S, Vh = torch.linalg.svd(layers[0].weight.detach(), full_matrices=False)
    layers[0].weight.data = U @ torch.diag(torch.cat([4 * S[:1], S[1:]])) @ Vh
    return lrft.attach(layers, {"method": "spectral-reg", "rank": 2})


def run_of(found: Any, step: int = 0) -> Run:
    return Run(step, 9, found.model, found.modules, None, 0, lambda t: t)


def test_an_update_of_zero_costs_nothing() -> None:
    assert SpectralReg().loss(run_of(attached())).item() < 1e-24


def test_value_and_gradient_are_those_of_the_decomposition() -> None:
    found, part = attached(), SpectralReg(strength=0.5)
    part.loss(run_of(found))
    for p in found.trained().values():
        nn.init.normal_(p, std=0.3)
    for step in range(60):
        loss = part.loss(run_of(found, step))
    W0 = found.layers()["0"].base.weight.detach()
    s1 = torch.linalg.svdvals(W0 + found.modules["0"].delta_weight())[0]
    expected = 0.5 * (s1 / torch.linalg.svdvals(W0)[0] - 1) ** 2
    assert torch.allclose(loss, expected, rtol=1e-8)
    wanted = list(found.trained().values())
    ours, theirs = torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted)
    assert all(torch.allclose(*both, rtol=1e-5, atol=1e-9) for both in zip(ours, theirs, strict=True))


def test_the_gradient_by_the_weight_has_rank_one() -> None:
    found, part = attached(), SpectralReg()
    part.loss(run_of(found))
    factors = factors_of(found.modules["0"])
    B = torch.randn(7, 7, dtype=torch.float64).requires_grad_()  # a dense change, as a product with the identity
    wide = type(factors)(B, torch.eye(7, 9, dtype=torch.float64), 1.0)
    W = found.layers()["0"].base.weight.detach()
    (slope,) = torch.autograd.grad(part.largest("0", W, wide), B)
    assert torch.linalg.matrix_rank(slope) == 1


def test_processes_and_resumed_runs_have_the_same_vectors() -> None:
    one, other = SpectralReg(), SpectralReg()
    found = attached()
    torch.manual_seed(1)
    first = one.loss(run_of(found))
    torch.manual_seed(2)
    assert torch.equal(first, other.loss(run_of(found)))
    nn.init.normal_(found.trained()["0.B"])
    resumed = SpectralReg()
    resumed.load_state(one.state())
    assert torch.equal(one.loss(run_of(found, 1)), resumed.loss(run_of(found, 1)))
