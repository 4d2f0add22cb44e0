"""DenseLoRA: its formula, what layers share, and that it is no weight."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import count_trained


def attach(rank: int = 3, **more: Any) -> Any:
    attached = lrft.attach(tiny.make("llama").double(), {"method": "denselora", "rank": rank, **more})
    tiny.disturb(list(attached.trained().values()), size=0.5)
    return attached


def test_every_layer_is_the_formula_and_layers_of_a_kind_share_both_ends() -> None:
    attached = attach(alpha=6.0, overrides={"0.self_attn.q_proj": {"rank": 5}})
    ends = attached.shared
    assert ends["model-layers-self_attn-q_proj-24x24"] is not ends["model-layers-self_attn-o_proj-24x24"]
    assert len(ends) == 7
    for name, layer in attached.layers().items():
        site, M = layer.adapter.site, layer.adapter.M
        words = "-".join(word for word in name.split(".") if not word.isdigit())
        own: Any = ends[f"{words}-{site.d}x{site.k}"]
        E, D = own.E[: site.rank], own.D[:, : site.rank]
        x = torch.randn(5, site.k, dtype=torch.float64)
        normal = torch.distributions.Normal(0.0, 1.0)

        def gelu(t: torch.Tensor, normal: Any = normal) -> torch.Tensor:
            return t * normal.cdf(t)

        dy = 6.0 / site.rank * gelu(gelu(x @ E.T) @ M.T @ D.T)
        assert torch.allclose(layer(x), layer.base(x) + dy, atol=1e-10), name
    assert ends["model-layers-self_attn-q_proj-24x24"].E.shape == (5, 24)


def test_the_update_is_not_additive_and_no_weight() -> None:
    attached = attach()
    adapter = next(iter(attached.modules.values()))
    one, other = torch.randn(2, 24, dtype=torch.float64)
    assert (adapter.delta(one + other) - adapter.delta(one) - adapter.delta(other)).abs().max() > 1e-3
    with pytest.raises(TypeError, match="not mergeable"):
        adapter.delta_weight()


def test_the_gradients_of_the_ends_are_sums_over_layers() -> None:
    """Against autograd left to itself, over a model in which each layer is called by hand."""
    torch.manual_seed(0)
    model: Any = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)).double()
    attached = lrft.attach(model, {"method": "denselora", "rank": 2})
    tiny.disturb(list(attached.trained().values()), size=0.5)
    x = torch.randn(4, 6, dtype=torch.float64)
    model[1](model[0](x)).square().sum().backward()
    own = attached.shared["6x6"]
    wanted = [own.E, own.D, *(adapter.M for adapter in attached.modules.values())]
    found = [p.grad for p in wanted]
    y = x
    for layer in attached.layers().values():
        code = nn.functional.gelu(y @ own.E.T)
        y = (layer.base(y) + 2.0 * nn.functional.gelu(code @ layer.adapter.M.T @ own.D.T)).tanh()
    for one, other in zip(found, torch.autograd.grad(y.square().sum(), wanted), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_numbers_trained() -> None:
    """Llama 3 8B: query, key, value, up and down of 32 layers at rank 16."""
    shapes = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "up": (14336, 4096), "down": (4096, 14336)}
    sites = [Site(f"{i}.{word}", d, k, 16) for i in range(32) for word, (d, k) in shapes.items()]
    expected = sum(16 * (d + k) for d, k in shapes.values()) + 5 * 32 * 16**2
    with torch.device("meta"):
        assert count_trained(sites, compose.compose([("denselora", {})])) == expected
