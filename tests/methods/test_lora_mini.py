"""LoRA-Mini: the chain of four, where its update lives, and that its start is no saddle."""

from __future__ import annotations

import pytest
import tiny
import torch

from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import build_site
from lrft.errors import RecipeError

WORDS = {"lora-mini": {"width": 6}}


def test_the_update_is_the_chain_and_lies_in_the_outer_parts() -> None:
    model, attached = tiny.layer(WORDS, 20, 14, alpha=6.0)
    tiny.disturb(list(attached.trained().values()))
    own = attached.modules["0"]
    dW = 6 / 4 * own.B_out @ own.B_in @ own.A_in @ own.A_out
    assert tiny.same_function(model, attached, dW)
    assert torch.linalg.matrix_rank(dW) == 4
    left, right = torch.linalg.qr(own.B_out).Q, torch.linalg.qr(own.A_out.T).Q
    assert (dW - left @ left.T @ dW).abs().max() < 1e-12
    assert (dW - dW @ right @ right.T).abs().max() < 1e-12
    assert {name: p.shape for name, p in attached.trained().items()} == {"0.A_in": (4, 6), "0.B_in": (6, 4)}


def test_the_first_step_moves_the_zero_factor() -> None:
    """Two zero factors, as an implementation in circulation has them, would never move."""
    model, attached = tiny.layer(WORDS, 20, 14)
    model(torch.randn(3, 14, dtype=torch.float64)).square().sum().backward()
    own = attached.modules["0"]
    assert own.B_in.grad.any()
    assert not own.A_in.grad.any()


def test_the_outer_parts_follow_from_seed_and_name_and_are_lora_sized() -> None:
    composition = compose.compose([("lora-mini", {})])
    site = Site("x", 300, 400, 8)
    one, again = (build_site(site, composition, None, fresh=False, seed=seed) for seed in (1, 2))
    other = build_site(Site("y", 300, 400, 8), composition, None, fresh=False)
    assert torch.equal(one.A_out, again.A_out)
    assert torch.equal(one.B_out, again.B_out)
    assert not torch.equal(one.A_out, other.A_out)
    assert one.A_out.shape == (64, 400)
    assert one.B_out.std().item() == pytest.approx(64**-0.5, rel=0.03)
    assert (one.A_in @ one.A_out).std().item() == pytest.approx((3 * 400) ** -0.5, rel=0.1), "as LoRA's A"
    assert set(one.tensors()) == {"A_in", "B_in"}, "the outer parts are not saved"


def test_the_width_follows_the_rank_and_one_below_it_is_refused() -> None:
    assert tiny.layer("lora-mini", 20, 14, rank=4)[1].trained()["0.A_in"].shape == (4, 64)
    assert tiny.layer("lora-mini", 20, 14, rank=40)[1].trained()["0.A_in"].shape == (40, 80)
    with pytest.raises(RecipeError, match="lora-mini's width 6 caps the rank 7: raise width or lower rank"):
        tiny.layer(WORDS, 20, 14, rank=7)
