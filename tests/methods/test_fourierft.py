"""FourierFT against its sum of cosines, and against PEFT's layer."""

from __future__ import annotations

import math
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

SHAPES = pytest.mark.parametrize(("d", "k", "n"), [(12, 18, 20), (18, 12, 20), (7, 11, 1), (7, 11, 77), (16, 16, 30)])


def adapter_of(d: int, k: int, n: int, **more: Any) -> Any:
    site = Site("layer", d, k, 3, dtype=torch.float64)
    composition = compose.compose([("fourierft", {"frequencies": n, "scaling": 40.0, **more})])
    adapter = build_site(site, composition, None, fresh=True)
    tiny.disturb(list(adapter.parameters()), size=1.0)
    return adapter


def dense(d: int, k: int, c: Tensor, scaling: float, seed: int) -> Tensor:
    """dW of the formula, one wave after another."""
    chosen = torch.randperm(d * k, generator=torch.Generator().manual_seed(seed))[: len(c)]
    o, i = torch.arange(d, dtype=torch.float64)[:, None], torch.arange(k, dtype=torch.float64)
    dW = torch.zeros(d, k, dtype=torch.float64)
    for value, place in zip(c.detach(), chosen.tolist(), strict=True):
        dW += value * torch.cos(2 * math.pi * (place // k * o / d + place % k * i / k))
    return scaling / (d * k) * dW


@SHAPES
@pytest.mark.parametrize("seed", [777, 3])
def test_the_definition_and_the_fast_path_are_the_formula(d: int, k: int, n: int, seed: int) -> None:
    adapter = adapter_of(d, k, n, positions_seed=seed)
    assert adapter.c.shape == (n,)
    expected = dense(d, k, adapter.c, 40.0, seed)
    assert (adapter.delta_weight() - expected).abs().max() <= 1e-12
    for shape in ((5, k), (2, 3, k), (2, 1, 3, k)):
        x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        assert (adapter.delta(x) - x @ expected.T).abs().max() <= 1e-11


@SHAPES
def test_layer_and_merged_weight_are_those_of_peft(d: int, k: int, n: int) -> None:
    from peft import FourierFTConfig, get_peft_model

    model, base = nn.Sequential(nn.Linear(k, d)), nn.Linear(k, d)
    base.load_state_dict(model[0].state_dict())
    attached = lrft.attach(model, {"method": {"fourierft": {"frequencies": n}}, "rank": 3})
    tiny.disturb(list(attached.trained().values()), size=1.0)
    adapter: Any = attached.modules["0"]
    theirs = get_peft_model(nn.Sequential(base), FourierFTConfig(n_frequency=n, target_modules=["0"]))
    with torch.no_grad():
        theirs.base_model.model.get_submodule("0").fourierft_spectrum["default"].copy_(adapter.c)
    x = torch.randn(2, 3, k, generator=torch.Generator().manual_seed(4))
    assert (model(x) - theirs(x)).abs().max() <= 1e-4 * attached.delta("0").abs().max()
    merged = theirs.merge_and_unload()[0].weight
    assert (adapter.weight(attached.layers()["0"].base.weight) - merged).abs().max() <= 1e-5


def test_by_default_a_thousand_frequencies() -> None:
    adapter: Any = lrft.attach(nn.Sequential(nn.Linear(50, 40)), {"method": "fourierft"}).modules["0"]
    assert adapter.c.shape == (1000,)
    assert not adapter.c.any()


def test_gradients_of_both_paths_are_one() -> None:
    adapter = adapter_of(12, 18, 20)
    x = torch.randn(5, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    fast = torch.autograd.grad(adapter.delta(x).square().sum(), [x, adapter.c])
    slow = torch.autograd.grad((x @ adapter.delta_weight().T).square().sum(), [x, adapter.c])
    for a, b in zip(fast, slow, strict=True):
        assert torch.allclose(a, b, rtol=1e-9)


def test_the_update_is_linear_in_the_coefficients() -> None:
    one, two, both = (adapter_of(12, 18, 20) for _ in range(3))
    tiny.disturb([two.c], seed=7)
    both.load({"c": 3 * one.c - two.c})
    assert torch.allclose(both.delta_weight(), 3 * one.delta_weight() - two.delta_weight(), atol=1e-12)


def test_one_coefficient_is_a_plane_wave() -> None:
    adapter = adapter_of(12, 18, 20)
    for number in range(20):
        with torch.no_grad():
            adapter.c.zero_()[number] = 1.0
        dW = adapter.delta_weight().detach()
        assert torch.linalg.matrix_rank(dW, atol=1e-9) <= 2
        assert dW.abs().max() == pytest.approx(40.0 / (12 * 18))


def test_positions_belong_to_the_shape_and_the_seed_of_the_recipe_alone() -> None:
    model = nn.Sequential(nn.Linear(18, 12), nn.Linear(12, 12), nn.Linear(12, 18), nn.Linear(18, 12))
    words = {"method": {"fourierft": {"frequencies": 20}}}
    found: Any = lrft.attach(model, words, seed=1).modules
    entries = [found[name].entries for name in "0123"]
    assert torch.equal(entries[0], entries[3])
    assert not torch.equal(entries[0], entries[1])
    assert all(len(set(e.tolist())) == 20 for e in entries)
    again: Any = lrft.attach(nn.Sequential(nn.Linear(18, 12)), words, seed=2).modules
    assert torch.equal(again["0"].entries, entries[0])
    other: Any = lrft.attach(
        nn.Sequential(nn.Linear(18, 12)), {"method": {"fourierft": {"frequencies": 20, "positions_seed": 5}}}
    ).modules
    assert not torch.equal(other["0"].entries, entries[0])


def test_only_the_coefficients_are_saved() -> None:
    assert set(adapter_of(12, 18, 20).tensors()) == {"c"}
    assert not [name for name in adapter_of(12, 18, 20).state_dict() if name != "c"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_transforms_are_computed_in_float32_under_autocast(dtype: torch.dtype) -> None:
    """Half-precision transforms do not exist for every size, or at all."""
    model = nn.Sequential(nn.Linear(18, 12))
    attached: Any = lrft.attach(model, {"method": {"fourierft": {"frequencies": 20}}})
    tiny.disturb(list(attached.trained().values()))
    x = torch.randn(5, 18).to(dtype).float()
    expected = model(x)
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
        y.float().sum().backward()
    assert (y.float() - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max()
    assert attached.modules["0"].c.grad.abs().max() > 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="217 frequencies are more than the 12 x 18 = 216"):
        lrft.attach(nn.Sequential(nn.Linear(18, 12)), {"method": {"fourierft": {"frequencies": 217}}})
    with pytest.raises(RecipeError, match="fourierft has no scaling factor"):
        lrft.attach(nn.Sequential(nn.Linear(50, 50)), {"method": "fourierft", "scale": 2.0})
