"""Correlations of features over rows, against torch's own, and which hidden states are taken."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor

import lrft
from lrft.adapters.part import Run
from lrft.methods.lorb_correlation import LorbCorrelation, correlation, last_tokens
from lrft.objectives.sft import Outputs


def features(n: int, w: int) -> Tensor:
    return torch.randn(n, w, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n", "w"), [(40, 5), (5, 12)])
def test_it_is_the_mean_squared_correlation(n: int, w: int) -> None:
    F = features(n, w)
    R = torch.corrcoef(F.T)
    expected = (R.square().sum() - w) / (w * (w - 1))
    assert torch.allclose(correlation(F), expected, rtol=1e-4)
    moved = F * torch.linspace(1, 9, w) + torch.arange(w)
    assert torch.allclose(correlation(moved), expected, rtol=1e-4)


def test_whitened_features_cost_nothing() -> None:
    F = features(40, 5)
    F = torch.linalg.qr(F - F.mean(dim=0)).Q
    assert correlation(F).item() < 1e-12


def test_padding_is_not_looked_at() -> None:
    hidden = features(3 * 4, 2).view(3, 4, 2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]])
    assert last_tokens(hidden, mask).tolist() == [3, 1, 2]
    assert last_tokens(hidden, None).tolist() == [3, 3, 3]


def answers() -> Outputs:
    return Outputs(torch.zeros(3), lambda: torch.zeros(0), lambda: torch.zeros(0))


def test_the_hidden_states_of_the_present_pass_are_taken_and_get_gradients() -> None:
    model, ids = tiny.make("llama").train(), tiny.tokens()
    attached = lrft.attach(model, {"method": "lorb-correlation", "rank": 2})
    part = LorbCorrelation(strength=0.5)
    run = Run(0, 9, model, attached.modules, None, 0, lambda t: t)
    for _ in range(2):  # the hook is set once
        part.before_step(run)
    assert len(model.get_decoder()._forward_hooks) == 1
    with torch.no_grad():
        model(input_ids=ids)
    assert part.output_loss(run, answers()) is None, "no pass with gradients yet"
    hidden = model.get_decoder()(input_ids=ids).last_hidden_state
    term = part.output_loss(run, answers())
    assert torch.allclose(term, 0.5 * correlation(hidden[:, -1]))
    term.backward()
    assert any(p.grad is not None and p.grad.any() for p in attached.trained().values())


def test_without_strength_nothing_is_watched() -> None:
    model = tiny.make("llama")
    LorbCorrelation(strength=0.0).before_step(Run(0, 9, model, {}, None, 0, lambda t: t))
    assert not model.get_decoder()._forward_hooks
