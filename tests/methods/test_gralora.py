"""GraLoRA against its blocks one by one, and against PEFT's layer."""

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
FORMS = pytest.mark.parametrize(("n", "hybrid"), [(1, 0), (2, 0), (2, 2), (3, 0), (6, 0)])


def adapter_of(n: int, hybrid: int = 0, rank: int = 6, scale: float = 0.7) -> Any:
    composition = compose.compose([("gralora", {"blocks": n, "hybrid_rank": hybrid})])
    site = Site("layer", D, K, rank, scale, dtype=torch.float64)
    adapter = build_site(site, composition, None, fresh=True)
    tiny.disturb(list(adapter.parameters()), size=1.0)
    return adapter


def dense(adapter: Any, n: int) -> Tensor:
    """dW of the formula, block by block."""
    A, B = adapter.A_grid.detach(), adapter.B_grid.detach()
    height, width, part = D // n, K // n, A.shape[1] // n
    dW = torch.zeros(D, K, dtype=A.dtype)
    for j in range(n):
        for i in range(n):
            pair = B[j][:, i * part : (i + 1) * part] @ A[i][j * part : (j + 1) * part]
            dW[j * height : (j + 1) * height, i * width : (i + 1) * width] = pair
    if hasattr(adapter, "A_whole"):
        dW += adapter.B_whole.detach() @ adapter.A_whole.detach()
    return adapter.site.scale * dW


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, K, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@FORMS
def test_the_definition_the_fast_path_and_the_factors_are_the_formula(n: int, hybrid: int) -> None:
    rank = 8 if hybrid else 6
    adapter = adapter_of(n, hybrid, rank)
    expected = dense(adapter, n)
    assert expected.abs().min() > 0
    B, A, s = adapter.factors()
    assert A.shape[0] == n * (rank - hybrid) + hybrid
    assert (adapter.delta_weight() - expected).abs().max() <= 1e-12
    assert (s * B @ A - expected).abs().max() <= 1e-12
    for x in (inputs(5), inputs(2, 3), inputs(2, 1, 3)):
        assert (adapter.delta(x) - x @ expected.T).abs().max() <= 1e-11


@FORMS
def test_layer_and_merged_weight_are_those_of_peft(n: int, hybrid: int) -> None:
    from peft import GraloraConfig, get_peft_model

    torch.manual_seed(0)
    base = nn.Linear(K, D)
    model = nn.Sequential(nn.Linear(K, D))
    model.load_state_dict({f"0.{name}": value.clone() for name, value in base.state_dict().items()})
    rank = 6 + hybrid
    words = {"gralora": {"blocks": n, "hybrid_rank": hybrid}}
    attached = lrft.attach(model, {"method": words, "rank": rank, "alpha": 10.0})
    tiny.disturb(list(attached.trained().values()), size=0.5)
    adapter: Any = attached.modules["0"]
    config = GraloraConfig(r=6, hybrid_r=hybrid, gralora_k=n, alpha=10, gralora_dropout=0.0, target_modules=["0"])
    theirs = get_peft_model(nn.Sequential(base), config)
    layer = theirs.base_model.model.get_submodule("0")
    with torch.no_grad():
        layer.gralora_A["default"].copy_(adapter.A_grid.transpose(1, 2))
        layer.gralora_B["default"].copy_(adapter.B_grid.transpose(1, 2))
        if hybrid:
            layer.gralora_A_general["default"].weight.copy_(adapter.A_whole)
            layer.gralora_B_general["default"].weight.copy_(adapter.B_whole)
    for x in (inputs(5).float(), inputs(2, 3).float()):
        assert (model(x) - theirs(x)).abs().max() <= 1e-4
    merged = theirs.merge_and_unload()[0].weight
    assert (adapter.weight(attached.layers()["0"].base.weight) - merged).abs().max() <= 1e-5


@pytest.mark.parametrize(("n", "rank", "found"), [(1, 3, 3), (2, 4, 8), (3, 3, 9), (2, 6, 12), (3, 6, 12)])
def test_rank_is_n_times_that_of_lora_where_it_fits(n: int, rank: int, found: int) -> None:
    adapter = adapter_of(n, 0, rank)
    dW = adapter.delta_weight().detach()
    assert torch.linalg.matrix_rank(dW) == found == min(D, K, n * rank)
    for j in range(n):
        for i in range(n):
            block = dW.unflatten(0, (n, -1)).unflatten(2, (n, -1))[j, :, i]
            assert torch.linalg.matrix_rank(block) == min(rank // n, D // n, K // n)


def test_hybrid_adds_its_rank() -> None:
    assert torch.linalg.matrix_rank(adapter_of(2, 2, 6).delta_weight().detach()) == 2 * 4 + 2


def test_one_block_is_lora() -> None:
    adapter = adapter_of(1, 0, 4)
    lora: Any = build_site(adapter.site, compose.compose([("lora", {})]), None, fresh=True)
    lora.load({"A": adapter.A_grid[0], "B": adapter.B_grid[0]})
    assert torch.allclose(adapter.delta_weight(), lora.delta_weight(), rtol=1e-13)


def test_first_values() -> None:
    """The bound belongs to a block's inputs: larger than LoRA's by sqrt(n)."""
    site = Site("layer", 64, 4096, 64)
    words = {"blocks": 4, "hybrid_rank": 8}
    adapter: Any = build_site(site, compose.compose([("gralora", words)]), None, fresh=True)
    for A, bound in ((adapter.A_grid, (4 / 4096) ** 0.5), (adapter.A_whole, (1 / 4096) ** 0.5)):
        assert bound * 0.999 < A.abs().max() <= bound
        assert A.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not adapter.B_grid.any()
    assert not adapter.B_whole.any()


@pytest.mark.parametrize("scale", [{}, {"alpha": 3.0}, {"scale": 0.25}])
def test_the_factor_is_alpha_over_the_whole_rank(scale: dict[str, float]) -> None:
    model = nn.Sequential(nn.Linear(K, D))
    attached = lrft.attach(model, {"method": {"gralora": {"hybrid_rank": 2}}, "rank": 6, **scale})
    expected = scale.get("scale", scale.get("alpha", 12.0) / 6)
    assert attached.modules["0"].site.scale == expected


@pytest.mark.parametrize(
    ("options", "rank", "said"),
    [
        ({"blocks": 4}, 4, "4 blocks do not divide 12 outputs and 18 inputs.*divisor of 6"),
        ({"blocks": 9}, 9, "9 blocks do not divide.*divisor of 6"),
        ({"blocks": 2}, 5, "rank 5 less hybrid_rank 0 must be a multiple of 2 blocks"),
        ({"blocks": 2, "hybrid_rank": 4}, 4, "rank 4 less hybrid_rank 4"),
        ({"blocks": 2, "hybrid_rank": 8}, 4, "rank 4 less hybrid_rank 8"),
    ],
)
def test_what_does_not_come_out_even_is_refused(options: dict[str, int], rank: int, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        lrft.attach(nn.Sequential(nn.Linear(K, D)), {"method": {"gralora": options}, "rank": rank})


def test_a_start_from_factors_and_lora_plus_are_refused() -> None:
    for other, word in (("pissa", "pissa"), ("lora+", "lora\\+")):
        with pytest.raises(RecipeError, match=f"{word} requires a pair of factors A and B; gralora has no such pair"):
            lrft.attach(tiny.make("llama"), {"method": ["gralora", other], "rank": 2})
