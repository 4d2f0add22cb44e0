"""LoRA Dropout: whole rows and columns, the mean over masks, and the factor after training."""

from __future__ import annotations

from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor, nn

import lrft
from lrft.adapters.ensemble import copying
from lrft.errors import RecipeError
from lrft.export.merge import merge_adapter
from lrft.model.load import load_model
from lrft.objectives.sft import TokenLoss


def layer(options: dict[str, Any], d: int = 9, k: int = 11, **more: Any) -> tuple[nn.Module, Any]:
    """(model of one float64 layer without bias, handle), B away from zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d, bias=False)).double()
    attached = lrft.attach(model, {"method": {"lora-dropout": options}, "rank": 3, "alpha": 6.0, **more})
    tiny.disturb(list(attached.trained().values()), size=1.0)
    return model, attached


def update(model: Any, k: int = 11) -> Tensor:
    """dW (d, k) of one forward pass, from the images of the unit vectors."""
    return (model(torch.eye(k, dtype=torch.float64)).T - model[0].base.weight).detach()


def plain(attached: Any) -> Tensor:
    """s B A (d, k)."""
    own = attached.modules["0"].tensors()
    return 2.0 * (own["B"] @ own["A"]).detach()


def test_without_probability_it_is_lora_to_the_bit() -> None:
    ids, found = tiny.tokens(), []
    for words in ("lora", {"lora-dropout": {"p": 0.0}}):
        model = tiny.make("llama").train()
        attached = lrft.attach(model, {"method": words, "rank": 3})
        tiny.disturb(list(attached.trained().values()))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in attached.trained().values())])
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


def test_whole_rows_and_columns_vanish_together() -> None:
    model, attached = layer({"p": 0.4})
    full = plain(attached)
    torch.manual_seed(1)
    zeros = []
    for _ in range(200):
        dW = update(model)
        rows, columns = (dW.abs() > 1e-9).any(dim=1), (dW.abs() > 1e-9).any(dim=0)
        expected = full * rows[:, None] * columns
        assert torch.allclose(dW, expected, atol=1e-12)
        zeros.append((expected == 0).double().mean())
    # The share of zeros: its standard error over 200 pairs of masks is below 0.01.
    assert torch.stack(zeros).mean().item() == pytest.approx(2 * 0.4 - 0.4**2, abs=0.03)


@pytest.mark.parametrize(("rescale", "factor"), [("none", 0.49), ("inverted", 1.0)])
def test_the_mean_over_masks_is_what_is_left_after_training(rescale: str, factor: float) -> None:
    model, attached = layer({"p": 0.3, "rescale": rescale})
    torch.manual_seed(1)
    drawn = torch.stack([update(model) for _ in range(2000)])
    error = drawn.std(dim=0) / 2000**0.5
    model.eval()
    settled = update(model)
    assert torch.allclose(settled, factor * plain(attached), atol=1e-12)
    assert torch.allclose(attached.delta("0"), settled, atol=1e-12)
    assert ((drawn.mean(dim=0) - settled).abs() <= 5 * error).all()
    assert (drawn[0] - settled).abs().max() > 0.1


def test_evaluation_is_deterministic_and_training_is_not() -> None:
    model, _ = layer({"p": 0.5})
    assert not torch.equal(update(model), update(model))
    model.eval()
    assert torch.equal(update(model), update(model))


def test_a_model_that_is_in_evaluation_when_adapted_is_not_masked() -> None:
    model = nn.Sequential(nn.Linear(11, 9, bias=False)).double().eval()
    attached = lrft.attach(model, {"method": "lora-dropout", "rank": 3})
    tiny.disturb(list(attached.trained().values()), size=1.0)
    assert torch.allclose(update(model), attached.delta("0"), atol=1e-12)


def test_gradients_see_the_masks_of_their_own_pass() -> None:
    """Against autograd through the formula with the same masks, drawn in the same order."""
    model, attached = layer({"p": 0.5, "rescale": "inverted"})
    x = torch.randn(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(7)
    model(x).square().sum().backward()
    torch.manual_seed(7)
    m_out = torch.empty(9, 1, dtype=torch.float64).bernoulli_(0.5)
    m_in = torch.empty(1, 11, dtype=torch.float64).bernoulli_(0.5)
    own = {name: p.detach().clone().requires_grad_() for name, p in attached.modules["0"].tensors().items()}
    W = model[0].base.weight + 2.0 / 0.25 * (m_out * own["B"]) @ (own["A"] * m_in)
    (x @ W.T).square().sum().backward()
    for name, p in attached.modules["0"].tensors().items():
        assert torch.allclose(p.grad, own[name].grad, atol=1e-9), name


def test_a_half_precision_base_takes_the_slow_way_to_the_same() -> None:
    model, attached = layer({"p": 0.5})
    half = nn.Sequential(nn.Linear(11, 9, bias=False)).bfloat16()
    with torch.no_grad():
        half[0].weight.copy_(model[0].base.weight)
        model[0].base.weight.copy_(half[0].weight)
    again = lrft.attach(half, {"method": "lora-dropout", "rank": 3, "alpha": 6.0})
    again.load_state_dict({name: value.float() for name, value in attached.state_dict().items()})
    x = torch.randn(4, 11, generator=torch.Generator().manual_seed(3)).bfloat16()
    half.eval(), model.eval()
    y, expected = half(x), model(x.double())
    assert y.dtype == torch.bfloat16
    assert (y - expected).abs().max() <= 0.02 * expected.abs().max()
    half.train()
    assert not torch.equal(half(x), half(x))


@pytest.mark.parametrize("words", [["lora-dropout", "dora"], ["dora", "lora-dropout"]])
def test_dora_is_refused_in_either_order(words: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"dora"):
        lrft.attach(tiny.make("llama"), {"method": words, "rank": 2})


def test_what_it_cannot_mask_is_refused() -> None:
    with pytest.raises(RecipeError, match="lora-dropout requires a pair of factors"):
        lrft.attach(tiny.make("llama"), {"method": ["mora", "lora-dropout"], "rank": 2})
    with pytest.raises(RecipeError, match=r"lora-dropout requires adapter.dropout: 0"):
        lrft.attach(tiny.make("llama"), {"method": "lora-dropout", "rank": 2, "dropout": 0.1})


def test_a_resumed_run_draws_the_same_masks(place: Place) -> None:
    keys = ("adapter.method=lora-dropout", "training.max_steps=4", "checkpoint.every=2", "checkpoint.keep=9")
    whole = place.train(*keys)
    part = runs.cut(whole, 2, place.root / "cut")
    place.train(*keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []
    assert runs.differing(runs.tensors(place.train(*keys, "training.seed=1", out="other")), runs.tensors(whole))


def ensemble_of(n: int) -> tuple[Any, Any]:
    model = tiny.make("llama")
    attached = lrft.attach(model, {"method": {"lora-dropout": {"p": 0.3, "ensemble": n}}, "rank": 4})
    tiny.disturb(list(attached.trained().values()))
    return model, attached


def test_masked_models_have_masks_of_their_own_that_stay() -> None:
    model, _ = ensemble_of(3)
    ids = tiny.tokens()
    mean = tiny.logits(model, ids)
    assert copying(model)() == 3
    first, second, third = tiny.logits(model, ids.repeat(3, 1)).chunk(3)
    assert torch.equal(tiny.logits(model, ids.repeat(3, 1)), torch.cat([first, second, third]))
    for one, other in ((first, second), (second, third), (first, mean)):
        assert (one - other).abs().max() > 1e-2
    model.train()
    assert copying(model)() == 1, "training draws masks, one pair a pass"


def test_a_masked_model_leaves_out_whole_rows_and_columns_without_the_factor_of_the_mean() -> None:
    model, attached = ensemble_of(1)
    copying(model)
    name, layer = next(iter(attached.layers().items()))
    site = layer.adapter.site
    eye = torch.eye(site.k)
    found = (layer(eye) - layer.base(eye)).T
    own = layer.adapter.tensors()
    full = site.scale * (own["B"] @ own["A"]).detach()
    rows, columns = (found.abs() > 1e-5).any(dim=1), (found.abs() > 1e-5).any(dim=0)
    assert torch.allclose(found, full * rows[:, None] * columns, atol=1e-4), name
    assert 0 < rows.sum() < len(rows)
    assert 0 < columns.sum() < len(columns)


def test_the_ensemble_answers_with_the_mean_of_probabilities() -> None:
    model, _ = ensemble_of(3)
    ids = tiny.tokens()
    losses = TokenLoss(model).eval()
    losses.copies = copying(model)
    again = ids.repeat(3, 1)
    found = losses({"input_ids": again, "labels": again}).item()
    each = torch.stack(list(tiny.logits(model, again).softmax(-1).chunk(3)))
    mean = each.mean(0)[:, :-1].gather(2, ids[:, 1:, None])
    assert found == pytest.approx(-mean.log().sum().item(), rel=1e-5)


def test_a_run_measures_its_ensemble_and_merges_the_mean_update(place: Place) -> None:
    keys = ("evaluation.every=6", "training.learning_rate=0.05")
    one = place.train("adapter.method={lora-dropout: {p: 0.3}}", *keys, out="one")
    many = place.train("adapter.method={lora-dropout: {p: 0.3, ensemble: 4}}", *keys, out="many")
    assert [r["loss"] for r in runs.records(one)] == [r["loss"] for r in runs.records(many)]
    alone, together = (runs.records(run, "eval")[-1]["loss"] for run in (one, many))
    assert alone != pytest.approx(together, rel=1e-4)
    merge_adapter(many / "last", place.root / "merged")
    assert load_model(place.root / "merged", dtype=torch.float32) is not None
