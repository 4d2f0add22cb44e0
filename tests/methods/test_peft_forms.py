"""loha, lokr, hira and ia3 against stock PEFT: layer, gradients, merged weight, shapes and first values."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.methods.lokr import divided

R = 3
# method -> (options here, PEFT's configuration, name here -> name of its parameter there)
FORMS: dict[str, tuple[dict[str, Any], Any, dict[str, str]]] = {
    "loha": (
        {},
        lambda: peft.LoHaConfig(r=R, alpha=2 * R, target_modules=["0"]),
        {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"},
    ),
    "lokr": (
        {},
        lambda: peft.LoKrConfig(r=R, alpha=2 * R, target_modules=["0"]),
        {"C": "lokr_w1", "E1": "lokr_w2_a", "E2": "lokr_w2_b"},
    ),
    "lokr-both": (
        {"factor": 20, "decompose_both": True},
        lambda: peft.LoKrConfig(r=R, alpha=2 * R, target_modules=["0"], decompose_factor=20, decompose_both=True),
        {"C1": "lokr_w1_a", "C2": "lokr_w1_b", "E": "lokr_w2"},
    ),
    "hira": ({}, lambda: peft.HiraConfig(r=R, target_modules=["0"]), {"A": "hira_A", "B": "hira_B"}),
    "ia3": ({}, lambda: peft.IA3Config(target_modules=["0"], feedforward_modules=[]), {"change": "ia3_l"}),
    "ia3-inputs": (
        {"inputs_of": ("0",)},
        lambda: peft.IA3Config(target_modules=["0"], feedforward_modules=["0"]),
        {"change": "ia3_l"},
    ),
}
D, K = 60, 80


def both(form: str) -> tuple[Any, Any, nn.Module]:
    """(adapter here, PEFT's model, model here) around one layer; fresh."""
    options, config, _ = FORMS[form]
    bias = not form.startswith("ia3")  # PEFT scales the bias too
    model, base = nn.Sequential(nn.Linear(K, D, bias=bias)), nn.Linear(K, D, bias=bias)
    base.load_state_dict(model[0].state_dict())
    name = form.split("-")[0]
    scale = {"alpha": 2 * R} if name in ("loha", "lokr") else {}
    attached = lrft.attach(model, {"method": {name: options}, "rank": R, **scale})
    return attached.modules["0"], peft.get_peft_model(nn.Sequential(base), config()), model


@pytest.mark.parametrize("form", FORMS)
def test_layer_gradients_and_merged_weight_are_those_of_peft(form: str) -> None:
    adapter, theirs, model = both(form)
    names = FORMS[form][2]
    assert adapter.tensors().keys() == names.keys()
    layer = theirs.base_model.model.get_submodule("0")
    tiny.disturb(list(adapter.parameters()), size=1.0)
    offset = 1.0 if form.startswith("ia3") else 0.0  # here l - 1 is kept
    with torch.no_grad():
        for own, its in names.items():
            parameter = getattr(layer, its)["default"]
            parameter.copy_((getattr(adapter, own) + offset).reshape(parameter.shape))
    W0 = model[0].base.weight.detach()
    x = torch.randn(2, 3, K, generator=torch.Generator().manual_seed(4))
    outputs = []
    for each in (model, theirs):
        y = each(x)
        y.square().sum().backward()
        outputs.append(y.detach())
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    for own, its in names.items():
        wanted = getattr(layer, its)["default"].grad.reshape(getattr(adapter, own).shape)
        torch.testing.assert_close(getattr(adapter, own).grad, wanted, rtol=1e-3, atol=1e-2)
    merged = theirs.merge_and_unload()[0].weight
    torch.testing.assert_close(adapter.weight(W0), merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_first_values_are_zero_where_pefts_are_and_within_the_same_bounds(form: str) -> None:
    adapter, theirs, _ = both(form)
    layer = theirs.base_model.model.get_submodule("0")
    for own, its in FORMS[form][2].items():
        mine: Tensor = getattr(adapter, own).detach()
        other = getattr(layer, its)["default"].detach() - (1.0 if form.startswith("ia3") else 0.0)
        assert mine.numel() == other.numel()
        assert bool(mine.any()) == bool(other.any()), own
        if mine.any():  # uniform between the same bounds, one over the root of the columns
            bound = 1 / mine.shape[-1] ** 0.5
            for values in (mine, other):
                assert 0.7 * bound < values.abs().max() <= bound
                assert values.std() == pytest.approx(bound / 3**0.5, rel=0.4)


@pytest.mark.parametrize("size", [1, 2, 7, 12, 24, 30, 97, 128, 576, 1536, 4096, 11008])
@pytest.mark.parametrize("factor", [-1, 1, 4, 7, 16])
def test_sides_of_a_kronecker_product_are_those_of_peft(size: int, factor: int) -> None:
    from peft.tuners.lokr.layer import factorization

    if size > factor or factor == -1 or size % factor == 0:
        assert divided(size, factor) == factorization(size, factor)


def test_a_small_update_by_entries_has_a_rank_of_up_to_its_square() -> None:
    adapter, _, _ = both("loha")
    tiny.disturb(list(adapter.parameters()), size=1.0)
    update = adapter.delta_weight().detach()
    assert torch.linalg.matrix_rank(update) == R**2
    form = adapter.peft()
    torch.testing.assert_close(form.scale * form.B @ form.A, update, rtol=1e-4, atol=1e-5)
    assert adapter.factors() is not None  # 9 (60 + 80) < 60 * 80


def test_a_factor_of_zero_is_refused() -> None:
    with pytest.raises(lrft.errors.RecipeError, match="factor must be -1 or at least 1"):
        lrft.attach(nn.Sequential(nn.Linear(4, 4)), {"method": {"lokr": {"factor": 0}}, "rank": 2})
