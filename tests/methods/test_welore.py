"""Which layers WeLore takes for low-rank ones, and at which ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lrft
from lrft.errors import RecipeError


def model() -> nn.ModuleDict:
    """Layers whose singular values fall by a half each, by a little each, and not at all but one."""
    torch.manual_seed(0)
    layers = {name: nn.Linear(9, 8).double() for name in ("steep", "flat", "wide")}
    spectra = {
        "steep": 0.5 ** torch.arange(8.0),
        "flat": 1 - 0.05 * torch.arange(8.0),
        "wide": torch.tensor([1.0] * 7 + [0.5]),
    }
    for name, layer in layers.items():
        U, _, Vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        layer.weight.data = U * spectra[name].double() @ Vh
    return nn.ModuleDict(layers)


def attached(**options: Any) -> Any:
    return lrft.attach(model(), {"method": {"welore": options}, "rank": 2})


def test_layers_that_lose_half_are_trained_at_the_rank_that_they_keep() -> None:
    # Scaled, steep has 1, 0.50, 0.24, ...; flat 1, 0.86, 0.71, 0.57, 0.43, ...; wide seven times 1 and 0.
    assert {site.name: site.rank for site in attached(reduction=0.4).sites} == {"steep": 2}
    assert {site.name: site.rank for site in attached(reduction=0.5).sites} == {"steep": 1, "flat": 4}
    found = attached(reduction=0.6)
    assert {site.name: site.rank for site in found.sites} == {"steep": 1, "flat": 2}
    assert {name.split(".")[0] for name in found.trained()} == {"steep", "flat"}


def test_the_ranks_of_the_recipe_may_stay() -> None:
    assert {site.name: site.rank for site in attached(reduction=0.6, ranks="recipe").sites} == {"steep": 2, "flat": 2}


def test_more_reduction_keeps_fewer_values() -> None:
    ranks = []
    for reduction in (0.4, 0.5, 0.6, 0.8):
        ranks.append({s.name: s.rank for s in attached(reduction=reduction).sites}.get("steep"))
    assert ranks == sorted(ranks, reverse=True)


def test_the_start_is_the_truncated_weight_in_balanced_factors_and_the_update_zero() -> None:
    found = attached(reduction=0.4)
    (site,) = found.sites
    own, W = found.modules["steep"].tensors(), found.layers()["steep"].base.weight
    U, S, Vh = torch.linalg.svd(W)
    r = site.rank
    assert torch.allclose(own["B"] @ own["A"], U[:, :r] * S[:r] @ Vh[:r], atol=1e-12)
    assert torch.allclose(own["A"] @ own["A"].T, own["B"].T @ own["B"], atol=1e-12)
    assert not found.delta("steep").any()


def test_no_layer_of_low_rank_is_refused() -> None:
    with pytest.raises(RecipeError, match="no layer loses half of its singular values: raise reduction"):
        attached(reduction=0.05)
