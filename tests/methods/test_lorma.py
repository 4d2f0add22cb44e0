"""LoRMA against dense matrices written entry by entry from its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.errors import RecipeError

SHAPES = [(5, 8), (8, 5), (6, 6), (7, 9)]
FORMS = pytest.mark.parametrize("side", ["outputs", "inputs"])
VARIANTS = pytest.mark.parametrize("variant", ["plus", "pi"])


def layer(d: int, k: int, variant: str, side: str, *, rank: int = 2, size: float = 0.3, **more: Any) -> tuple[Any, Any]:
    """(model of one float64 layer, its adapter), A and B away from their start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).double()
    attached = lrft.attach(model, {"method": {"lorma": {"variant": variant, "side": side}}, "rank": rank, **more})
    tiny.disturb(list(attached.trained().values()), size=size)
    return model, attached.modules["0"]


def multiplier(adapter: Any, variant: str, s: float) -> Tensor:
    """The dense matrix (n, n) that W is multiplied by."""
    M = adapter.B @ adapter.A
    n = len(M)
    if variant == "plus":
        return torch.eye(n, dtype=M.dtype) + s * M
    return s * torch.stack([torch.stack([M[i, (j - i) % n] for j in range(n)]) for i in range(n)])


@FORMS
@VARIANTS
@pytest.mark.parametrize(("d", "k"), SHAPES)
def test_weight_forward_and_gradients_are_those_of_the_formula(d: int, k: int, variant: str, side: str) -> None:
    model, adapter = layer(d, k, variant, side, alpha=6.0)
    W, x = model[0].base.weight, torch.randn(3, 2, k, dtype=torch.float64, requires_grad=True)
    S = multiplier(adapter, variant, 3.0)
    expected = S @ W if side == "outputs" else W @ S
    assert torch.allclose(adapter.weight(W), expected, atol=1e-12)
    y = x @ expected.T + model[0].bias
    assert torch.allclose(model(x), y, atol=1e-12)
    wanted = [adapter.A, adapter.B, x]
    found = torch.autograd.grad(model(x).square().sum(), wanted)
    for one, other in zip(found, torch.autograd.grad(y.square().sum(), wanted), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@FORMS
@VARIANTS
def test_the_start_multiplies_by_the_identity(variant: str, side: str) -> None:
    for more in ({}, {"alpha": 10.0}, {"scale": 0.3}):
        _, adapter = layer(5, 8, variant, side, size=0, **more)
        S = multiplier(adapter, variant, adapter.site.scale)
        assert torch.allclose(S, torch.eye(len(S), dtype=S.dtype), atol=1e-14), more
        assert adapter.A.any()
        assert adapter.B.any() == (variant == "pi")


@FORMS
def test_plus_changes_the_weight_by_rank_r(side: str) -> None:
    model, adapter = layer(20, 24, "plus", side)
    W = model[0].base.weight
    assert torch.linalg.matrix_rank(adapter.weight(W) - W) == 2


@FORMS
def test_pi_has_a_rank_far_above_r(side: str) -> None:
    model, adapter = layer(20, 24, "pi", side)
    W = model[0].base.weight
    assert torch.linalg.matrix_rank(multiplier(adapter, "pi", 2.0)) == (20 if side == "outputs" else 24)
    assert torch.linalg.matrix_rank(adapter.weight(W) - W) == 20


@FORMS
@VARIANTS
def test_the_bias_is_not_multiplied(variant: str, side: str) -> None:
    model, _ = layer(5, 8, variant, side)
    assert torch.allclose(model(torch.zeros(1, 8, dtype=torch.float64))[0], model[0].bias, atol=1e-14)


@VARIANTS
def test_a_small_change_of_the_inputs_survives_bfloat16(variant: str) -> None:
    """Added to the inputs and rounded with them, it would be gone: the next number after 1 is 1.0078."""
    model = nn.Sequential(nn.Linear(64, 1, bias=False)).bfloat16()
    W = torch.tensor([1.0, -1.0]).repeat(32)[None]
    x = torch.ones(1, 64)
    with torch.no_grad():
        model[0].weight.copy_(W)
    section = {"method": {"lorma": {"variant": variant, "side": "inputs"}}, "rank": 2, "target_modules": ["0"]}
    adapter = lrft.attach(model, section).modules["0"]
    tiny.disturb([adapter.B], size=1e-3)
    expected = x.double() @ adapter.double().weight(W.double()).T
    adapter.float()
    assert 1e-4 < expected.abs().item() < 0.1
    assert torch.allclose(model(x.bfloat16()).double(), expected, rtol=0.02)


def test_numbers_trained() -> None:
    for side, n in (("outputs", 5), ("inputs", 8)):
        for variant in ("plus", "pi"):
            _, adapter = layer(5, 8, variant, side, rank=3)
            assert sum(p.numel() for p in adapter.parameters()) == 2 * 3 * n


@pytest.mark.parametrize(("words", "s"), [({}, 2.0), ({"alpha": 6.0}, 1.5), ({"scale": 0.3}, 0.3)])
def test_the_factor_is_alpha_over_the_rank(words: dict[str, Any], s: float) -> None:
    attached = lrft.attach(nn.Sequential(nn.Linear(8, 5)), {"method": "lorma", "rank": 4, **words})
    assert attached.modules["0"].site.scale == s


@VARIANTS
def test_random_first_values_are_those_of_kaimings_rule(variant: str) -> None:
    """A factor of n rows or columns and r: uniform, bounded by one over the square root of what it sums over."""
    torch.manual_seed(0)
    words = {"method": {"lorma": {"variant": variant}}, "rank": 9, "scale": 4.0}
    adapter: Any = lrft.attach(nn.Sequential(nn.Linear(3, 400)), words).modules["0"]
    found, bound = (adapter.A, 400**-0.5) if variant == "plus" else (2 * adapter.B[:, 1:], 9**-0.5)
    assert 0.99 * bound < found.abs().max() <= bound * (1 + 1e-6)
    assert found.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_what_does_not_fit_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 5))
    with pytest.raises(RecipeError, match=r"lorma requires adapter\.dropout: 0"):
        lrft.attach(model, {"method": "lorma", "rank": 2, "dropout": 0.1})
    with pytest.raises(
        RecipeError, match="dora requires an update that is added to the weight; lorma has no such update"
    ):
        lrft.attach(model, {"method": ["lorma", "dora"], "rank": 2})
