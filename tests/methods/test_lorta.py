"""LoRTA: its tensor entry by entry, heads on either side, fewer heads, and what layers share."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import build_shared, count_trained
from lrft.errors import RecipeError

HEAD = 6  # of the tiny Llama: 4 heads of queries, 2 of keys and values, width 24


def attach(rank: int = 3, **more: Any) -> Any:
    method = {"lorta": {"head_dim": HEAD}}
    attached = lrft.attach(tiny.make("llama").double(), {"method": method, "rank": rank, "alpha": 6.0, **more})
    tiny.disturb(list(attached.trained().values()), size=0.5)
    return attached


def test_every_attention_matrix_is_its_part_of_one_tensor() -> None:
    attached = attach()
    own = attached.shared[f"24x{HEAD}"]
    whole = torch.einsum("ar,br,hr,lr,mr->lmhba", own.A, own.B, own.C_h, own.C_l, own.C_m)
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj"]
    for name in attached.modules:
        layer, word = int(name.split(".")[2]), name.rpartition(".")[2]
        if "attn" in name:
            heads = 2 if word in ("k_proj", "v_proj") else 4
            dW = 2.0 * whole[layer, kinds.index(word), :heads].flatten(0, 1)
            found = attached.delta(name).T if word == "o_proj" else attached.delta(name)
            assert torch.allclose(found, dW, atol=1e-10), name
            assert torch.linalg.matrix_rank(dW) == 3


def test_outside_of_attention_a_layer_is_one_head() -> None:
    attached = attach()
    own = attached.shared["24x44"]
    whole = torch.einsum("ar,br,r,lr,mr->lmba", own.A, own.B, own.C_h[0], own.C_l, own.C_m)
    for layer in (0, 1):
        for m, word in enumerate(("gate_proj", "up_proj", "down_proj")):
            found = attached.delta(f"model.layers.{layer}.mlp.{word}")
            assert torch.allclose(found.T if word == "down_proj" else found, 2.0 * whole[layer, m], atol=1e-10)


def test_the_output_is_that_of_the_dense_update() -> None:
    attached = attach()
    for name, layer in attached.layers().items():
        x = torch.randn(5, layer.adapter.site.k, dtype=torch.float64)
        expected = x @ (layer.base.weight + attached.delta(name)).T
        assert torch.allclose(layer(x), expected if layer.base.bias is None else expected + layer.base.bias, atol=1e-10)


def test_layers_differ_by_their_own_factor_alone() -> None:
    attached = attach()
    names = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]
    assert not torch.allclose(*(attached.delta(name) for name in names))
    with torch.no_grad():
        attached.shared[f"24x{HEAD}"].C_l[1] = attached.shared[f"24x{HEAD}"].C_l[0]
    assert torch.equal(*(attached.delta(name) for name in names))


def test_numbers_of_llama_2_7b_and_start_values() -> None:
    """Width 4096, heads of 128, 32 heads, 32 layers: 4292 r."""
    words = ("q_proj", "k_proj", "v_proj", "o_proj")
    sites = [Site(f"{i}.attn.{word}", 4096, 4096, 8, depth=i) for i in range(32) for word in words]
    composition = compose.compose([("lorta", {"head_dim": 128})])
    assert count_trained(sites, composition) == 4292 * 8
    own: Any = build_shared(sites, composition)["4096x128"]
    assert not own.B.any()
    assert own.A.abs().max().item() == pytest.approx(8**-0.5, rel=0.01)
    assert own.C_h.abs().max().item() == pytest.approx((6 / 8) ** 0.5, rel=0.02)


def test_heads_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        RecipeError, match=r"layers\.0\.self_attn\.q_proj: 24 outputs are not a multiple of 64: set lorta's"
    ):
        lrft.attach(tiny.make("llama"), {"method": "lorta"})
