"""C3A against its circulant blocks entry by entry, and against PEFT's layer."""

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

# odd and even blocks, wide and narrow, single numbers, the whole layer
SHAPES = pytest.mark.parametrize(
    ("d", "k", "b"), [(12, 18, 6), (12, 18, 3), (18, 12, 2), (12, 18, 1), (10, 10, 10), (15, 5, 5)]
)


def adapter_of(d: int, k: int, b: int = 0, rank: int = 3) -> Any:
    site = Site("layer", d, k, rank, dtype=torch.float64)
    adapter = build_site(site, compose.compose([("c3a", {"block": b})]), None, fresh=True)
    tiny.disturb(list(adapter.parameters()), size=1.0)
    return adapter


def dense(w: Tensor, d: int, k: int) -> Tensor:
    b = w.shape[2]
    dW = torch.zeros(d, k, dtype=w.dtype)
    for o in range(d):
        for i in range(k):
            dW[o, i] = w[o // b, i // b, (i % b - o % b) % b] / k
    return dW


@SHAPES
def test_the_definition_and_the_fast_path_are_the_formula(d: int, k: int, b: int) -> None:
    adapter = adapter_of(d, k, b)
    assert adapter.w.shape == (d // b, k // b, b)
    assert adapter.w.numel() == d * k // b
    expected = dense(adapter.w.detach(), d, k)
    assert (adapter.delta_weight() - expected).abs().max() <= 1e-14
    for shape in ((5, k), (2, 3, k), (2, 1, 3, k)):
        x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        assert (adapter.delta(x) - x @ expected.T).abs().max() <= 1e-13 * k


@SHAPES
def test_layer_and_merged_weight_are_those_of_peft(d: int, k: int, b: int) -> None:
    from peft import C3AConfig, get_peft_model

    model, base = nn.Sequential(nn.Linear(k, d)), nn.Linear(k, d)
    base.load_state_dict(model[0].state_dict())
    attached = lrft.attach(model, {"method": {"c3a": {"block": b}}, "rank": 3})
    tiny.disturb(list(attached.trained().values()), size=2.0)
    adapter: Any = attached.modules["0"]
    theirs = get_peft_model(nn.Sequential(base), C3AConfig(block_size=b, target_modules=["0"]))
    with torch.no_grad():
        theirs.base_model.model.get_submodule("0").c3a_kernel["default"].copy_(adapter.w)
    x = torch.randn(2, 3, k, generator=torch.Generator().manual_seed(4))
    found = []
    for each in (model, theirs):
        y = each(x)
        y.square().sum().backward()
        found.append(y.detach())
    assert (found[0] - found[1]).abs().max() <= 1e-5
    slope = theirs.base_model.model.get_submodule("0").c3a_kernel["default"].grad
    assert torch.allclose(adapter.w.grad, slope, rtol=1e-4, atol=1e-4)
    merged = theirs.merge_and_unload()[0].weight
    assert (adapter.weight(attached.layers()["0"].base.weight) - merged).abs().max() <= 1e-5


def test_rows_of_a_block_are_shifts_of_each_other() -> None:
    dW = adapter_of(12, 18, 6).delta_weight().detach()
    for m in range(2):
        for n in range(3):
            block = dW[6 * m : 6 * m + 6, 6 * n : 6 * n + 6]
            assert block[0].unique().numel() == 6
            for t in range(6):
                assert torch.equal(block[t], block[0].roll(t))


def test_one_block_commutes_with_the_shift() -> None:
    dW = adapter_of(10, 10, 10).delta_weight().detach()
    shift = torch.eye(10, dtype=torch.float64).roll(1, 0)
    assert torch.equal(dW @ shift, shift @ dW)
    assert torch.linalg.matrix_rank(dW) == 10


def test_two_updates_add() -> None:
    """The update is linear in the kernels, and the second sees the layer's input, not the first one's output."""
    one, two, both = (adapter_of(12, 18, 6) for _ in range(3))
    tiny.disturb([two.w], seed=7)
    both.load({"w": one.w + two.w})
    x = torch.randn(5, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(both.delta(x), one.delta(x) + two.delta(x), atol=1e-13)


def test_gradients_of_both_paths_are_one() -> None:
    adapter = adapter_of(12, 18, 6)
    x = torch.randn(5, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    fast = torch.autograd.grad(adapter.delta(x).square().sum(), [x, adapter.w])
    slow = torch.autograd.grad((x @ adapter.delta_weight().T).square().sum(), [x, adapter.w])
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize(
    ("d", "k", "rank", "b"),
    [(4096, 4096, 8, 256), (4096, 11008, 8, 256), (24, 44, 4, 4), (24, 44, 1, 4), (24, 24, 100, 1), (7, 5, 1, 1)],
)
def test_without_a_block_it_comes_nearest_to_a_lora_of_the_rank(d: int, k: int, rank: int, b: int) -> None:
    composition: Any = compose.compose([("c3a", {})])
    with torch.device("meta"):
        w = composition.method.build(Site("layer", d, k, rank)).w
    assert w.shape == (d // b, k // b, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_transforms_are_computed_in_float32_under_autocast(dtype: torch.dtype) -> None:
    """Half-precision transforms do not exist for every size, or at all."""
    model = nn.Sequential(nn.Linear(18, 12))
    attached: Any = lrft.attach(model, {"method": {"c3a": {"block": 6}}})
    tiny.disturb(list(attached.trained().values()), size=2.0)
    x = torch.randn(5, 18).to(dtype).float()
    expected = model(x)
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
        y.float().sum().backward()
    assert (y.float() - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max()
    assert attached.modules["0"].w.grad.abs().max() > 0


def test_what_does_not_come_out_even_is_refused() -> None:
    for b, smaller in ((4, 3), (12, 6), (100, 6)):
        with pytest.raises(RecipeError, match=f"size {b} does not divide 12 outputs.*set block to {smaller}"):
            lrft.attach(nn.Sequential(nn.Linear(18, 12)), {"method": {"c3a": {"block": b}}})
    with pytest.raises(RecipeError, match="c3a has no scaling factor"):
        lrft.attach(nn.Sequential(nn.Linear(18, 12)), {"method": "c3a", "alpha": 2.0})
