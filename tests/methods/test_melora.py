"""MELoRA against its diagonal blocks one by one."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import build_site
from lrft.errors import RecipeError

D, K = 12, 18
MINIS = pytest.mark.parametrize("n", [1, 2, 3, 6])


def adapter_of(n: int, rank: int = 2, scale: float = 0.7) -> Any:
    site = Site("layer", D, K, rank, scale, dtype=torch.float64)
    adapter = build_site(site, compose.compose([("melora", {"minis": n})]), None, fresh=True)
    tiny.disturb(list(adapter.parameters()), size=1.0)
    return adapter


def dense(adapter: Any, n: int) -> Tensor:
    dW = torch.zeros(D, K, dtype=torch.float64)
    for i, (A, B) in enumerate(zip(adapter.A_minis.detach(), adapter.B_minis.detach(), strict=True)):
        for o in range(D // n):
            for c in range(K // n):
                dW[i * (D // n) + o, i * (K // n) + c] = adapter.site.scale * (B[o] * A[:, c]).sum()
    return dW


@MINIS
def test_the_definition_the_fast_path_and_the_factors_are_the_formula(n: int) -> None:
    adapter = adapter_of(n)
    expected = dense(adapter, n)
    B, A, s = adapter.factors()
    assert A.shape[0] == 2 * n
    assert (adapter.delta_weight() - expected).abs().max() <= 1e-12
    assert (s * B @ A - expected).abs().max() <= 1e-12
    for shape in ((5, K), (2, 3, K), (2, 1, 3, K)):
        x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        assert (adapter.delta(x) - x @ expected.T).abs().max() <= 1e-11


@pytest.mark.parametrize("n", [2, 3, 6])
def test_beside_the_diagonal_blocks_there_is_exactly_nothing(n: int) -> None:
    dW = adapter_of(n).delta_weight().detach().clone()
    for i in range(n):
        block = dW[i * D // n : (i + 1) * D // n, i * K // n : (i + 1) * K // n]
        assert block.abs().min() > 0
        block.zero_()
    assert not dW.any()


@pytest.mark.parametrize(("n", "rank"), [(1, 3), (2, 3), (3, 2), (6, 1), (6, 2)])
def test_rank_is_n_times_r(n: int, rank: int) -> None:
    assert torch.linalg.matrix_rank(adapter_of(n, rank).delta_weight().detach()) == n * rank


def test_one_mini_is_lora() -> None:
    adapter = adapter_of(1)
    lora: Any = build_site(adapter.site, compose.compose([("lora", {})]), None, fresh=True)
    lora.load({"A": adapter.A_minis[0], "B": adapter.B_minis[0]})
    assert torch.allclose(adapter.delta_weight(), lora.delta_weight(), rtol=1e-13)


def test_numbers_do_not_depend_on_n() -> None:
    counts = {sum(p.numel() for p in adapter_of(n).parameters()) for n in (1, 2, 3, 6)}
    assert counts == {2 * (D + K)}


def test_first_values() -> None:
    site = Site("layer", 64, 4096, 16)
    adapter: Any = build_site(site, compose.compose([("melora", {})]), None, fresh=True)
    bound = (8 / 4096) ** 0.5
    assert adapter.A_minis.shape == (8, 16, 512)
    assert bound * 0.999 < adapter.A_minis.abs().max() <= bound
    assert adapter.A_minis.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not adapter.B_minis.any()


def test_dropout_falls_on_each_input_by_itself() -> None:
    model = nn.Sequential(nn.Linear(K, D, bias=False)).double()
    attached = lrft.attach(model, {"method": {"melora": {"minis": 3}}, "rank": 2, "dropout": 0.5})
    tiny.disturb(list(attached.trained().values()))
    x = torch.ones(7, K, dtype=torch.float64)
    torch.manual_seed(5)
    y = model.train()(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.5)
    expected = x @ attached.layers()["0"].base.weight.T + dropped @ attached.delta("0").T
    assert torch.allclose(y, expected, atol=1e-12)
    assert not torch.allclose(y, model.eval()(x))


@pytest.mark.parametrize(("words", "s"), [({}, 16.0), ({"rank": 4}, 4.0), ({"alpha": 6.0, "rank": 3}, 2.0)])
def test_the_factor_is_alpha_over_the_rank_of_one_mini(words: dict[str, Any], s: float) -> None:
    attached = lrft.attach(nn.Sequential(nn.Linear(16, 8)), {"method": "melora", "rank": 1, **words})
    assert attached.modules["0"].site.scale == s


def test_what_does_not_come_out_even_is_refused() -> None:
    for n in (4, 5, 9):
        with pytest.raises(
            RecipeError, match=f"{n} minis do not divide 12 outputs and 18 inputs: set minis to a divisor of 6"
        ):
            lrft.attach(nn.Sequential(nn.Linear(K, D)), {"method": {"melora": {"minis": n}}, "rank": 2})
