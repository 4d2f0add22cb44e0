"""Sparse spectral training: its gradients, its columns, its probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.part import Run
from lrft.methods.sst import Sst, draw, probabilities


def attach(**options: Any) -> tuple[Any, Any, Sst]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7)).double()
    attached = lrft.attach(model, {"method": {"sst": options}, "rank": 2})
    composition = compose.compose((e["name"], e["options"]) for e in attached.methods)
    return attached, attached.modules["0"], composition.method


def run_of(attached: Any, step: int, optimizer: Any = None) -> Run:
    return Run(step, 100, attached.model, attached.modules, optimizer, 0, lambda t: t)


def gradients(adapter: Any, seed: int = 0) -> Tensor:
    G = torch.randn(7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    adapter.zero_grad()
    (adapter.product() * G).sum().backward()
    return G


def test_it_starts_as_the_weight() -> None:
    attached, adapter, _ = attach()
    W = attached.layers()["0"].base.weight
    assert torch.allclose(adapter.weight(W), W, atol=1e-13)
    assert torch.allclose(adapter.S, torch.linalg.svdvals(W), rtol=1e-12)


def test_gradients_of_the_drawn_columns_are_free_of_the_singular_values() -> None:
    attached, adapter, part = attach()
    part.before_step(run_of(attached, 0))
    G = gradients(adapter)
    of_S = adapter.S.grad.clone()
    part.after_backward(run_of(attached, 0))
    chosen = part.drawn["0"]
    others = [i for i in range(7) if i not in chosen.tolist()]
    assert torch.allclose(adapter.U.grad[:, chosen], (G @ adapter.V)[:, chosen], rtol=1e-10)
    assert torch.allclose(adapter.V.grad[:, chosen], (G.T @ adapter.U)[:, chosen], rtol=1e-10)
    assert not adapter.U.grad[:, others].any()
    assert not adapter.V.grad[:, others].any()
    assert torch.equal(adapter.S.grad, of_S)
    assert torch.allclose(of_S, (adapter.U.T @ G @ adapter.V).diagonal(), rtol=1e-9)


def test_the_other_columns_stay_to_the_bit_also_under_decay_and_after_another_draw() -> None:
    attached, adapter, part = attach(every=3)
    groups = [{"params": list(attached.trained().items()), "weight_decay": 0.1}]
    groups = [
        {"params": [(n, p) for n, p in attached.trained().items() if n[-1] != "S"], "weight_decay": 0.1},
        {"params": [(n, p) for n, p in attached.trained().items() if n[-1] == "S"], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.3)
    for step in range(6):
        run = run_of(attached, step, optimizer)
        part.before_step(run)
        before = adapter.U.detach().clone(), adapter.V.detach().clone()
        gradients(adapter, step)
        part.after_backward(run)
        optimizer.step()
        part.after_step(run)
        others = [i for i in range(7) if i not in part.drawn["0"].tolist()]
        for p, old in zip((adapter.U, adapter.V), before, strict=True):
            assert torch.equal(p[:, others], old[:, others])
            assert not torch.equal(p, old)
            assert torch.allclose(p.norm(dim=0), torch.ones(7, dtype=torch.float64), rtol=1e-9)
        assert (adapter.S >= 0).all()
        assert int(optimizer.state[adapter.U]["step"]) == step % 3 + 1, "moments begin anew with each draw"
        assert int(optimizer.state[adapter.S]["step"]) == step + 1


def test_probabilities_and_draws() -> None:
    S = torch.tensor([4.0, 2.0, 1.0, 0.0])
    assert torch.allclose(probabilities(S), torch.tensor([0.125 + 2 / 7, 0.125 + 1 / 7, 0.125 + 0.5 / 7, 0.125]))
    found = [draw(S, 2, seed).tolist() for seed in range(400)]
    assert all(len(set(pair)) == 2 for pair in found)
    counts = torch.tensor([sum(i in pair for pair in found) for i in range(4)])
    assert (counts.diff() < 0).all()
    assert counts.min() > 0
    assert draw(S, 2, 5).tolist() == found[5]


def test_a_new_decomposition_leaves_the_weight_and_puts_it_in_order() -> None:
    attached, adapter, part = attach(every=1)
    with torch.no_grad():
        for p in (adapter.U, adapter.S, adapter.V):
            p.add_(0.3 * torch.rand(p.shape, dtype=p.dtype))
    before = adapter.product().detach().clone()
    part.before_step(run_of(attached, 3, torch.optim.AdamW(attached.trained().items())))  # the fourth of 7 / 2 draws
    assert torch.allclose(adapter.product(), before)
    assert not torch.allclose(adapter.U.T @ adapter.U, torch.eye(7, dtype=torch.float64), atol=1e-3)
    part.before_step(run_of(attached, 4, torch.optim.AdamW(attached.trained().items())))
    assert torch.allclose(adapter.product(), before, atol=1e-12)
    assert torch.allclose(adapter.U.T @ adapter.U, torch.eye(7, dtype=torch.float64), atol=1e-12)
    assert (adapter.S.diff() <= 0).all()


def test_the_rate_rises_again_after_each_draw_but_the_first() -> None:
    attached, _, part = attach(every=10, warmup=3)
    found = [part.rate(run_of(attached, step), "0") for step in (0, 9, 10, 11, 12, 13, 19, 20)]
    assert found == [1.0, 1.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.25]
