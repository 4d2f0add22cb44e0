"""What a start may find out about the base: exact inputs and gradients, whatever the batches and number of ranks."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from lrft.adapters import targets
from lrft.adapters.calibration import CalibrationContext
from lrft.objectives.cross_entropy import trained_tokens
from lrft.objectives.sft import TokenLoss
from lrft.utils import seeds

NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj")


def batches(rows: int = 4) -> list[dict[str, Tensor]]:
    """Padded batches of one row each, with lengths of their own."""
    made = []
    for row in range(rows):
        ids = tiny.tokens(rows=1, length=11, seed=row)
        mask = torch.ones_like(ids)
        mask[:, 11 - row :] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return made


def look_at(model: Any, given: list[dict[str, Tensor]], **more: Any) -> CalibrationContext:
    modules = dict(model.named_modules())
    sites = [targets.site_of(name, modules[name], rank=2, scale=1.0, dropout=0.0) for name in NAMES]
    context = CalibrationContext(
        model, batches=lambda rows: given[:rows], loss=TokenLoss(model), tokens=trained_tokens, **more
    )
    context.sites = sites
    return context


def gradients(model: Any, given: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of the mean token loss, by autograd on the weights themselves. (The norms of the model compute in float32.)"""
    weights = {name: model.get_submodule(name).weight for name in NAMES}
    loss = sum(TokenLoss(model)(batch) for batch in given) / sum(map(trained_tokens, given))
    found = torch.autograd.grad(loss, list(weights.values()))
    return dict(zip(weights, found, strict=True))


def test_products_with_a_gradient_are_those_of_the_whole_gradient() -> None:
    model, given = tiny.make("llama").double(), batches()
    whole = gradients(model, given)
    context = look_at(model, given)
    right = {name: torch.randn(whole[name].shape[1], 3, dtype=torch.float64) for name in NAMES[:2]}
    left = {name: torch.randn(whole[name].shape[0], 3, dtype=torch.float64) for name in NAMES}
    for name, product in context.right_products(4, right).items():
        assert torch.allclose(product, whole[name] @ right[name], rtol=1e-5, atol=1e-7), name
    products = context.left_products(4, left)
    assert products.keys() == set(NAMES)
    for name, product in products.items():
        assert torch.allclose(product, whole[name].T @ left[name], rtol=1e-5, atol=1e-7), name
    for site, G in context.gradients(4):
        assert torch.allclose(G, whole[site.name], rtol=1e-5, atol=1e-7), site.name


def test_gradients_come_a_few_at_a_time_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = tiny.make("llama").double(), batches()
    together = {site.name: G for site, G in look_at(model, given).gradients(4)}
    monkeypatch.setattr("lrft.adapters.calibration.GRADIENTS_AT_ONCE", 1)
    asked = []
    context = look_at(model, given)
    context.batches = lambda rows: asked.append(rows) or given[:rows]  # type: ignore[func-returns-value]
    apart = {site.name: G for site, G in context.gradients(4)}
    assert len(asked) == len(NAMES)
    assert all(torch.allclose(together[name], apart[name], atol=1e-15) for name in NAMES)


def test_inputs_are_those_of_the_layers_without_padding_and_collected_once_where_they_are_shared() -> None:
    model, given = tiny.make("llama").double(), batches()
    seen: dict[str, list[Tensor]] = {}
    leaders = look_at(model, given).inputs(4, lambda name, x: seen.setdefault(name, []).append(x))
    assert leaders == {NAMES[0]: NAMES[0], NAMES[1]: NAMES[0], NAMES[2]: NAMES[2]}
    assert [len(x) for x in seen[NAMES[0]]] == [11, 10, 9, 8]
    hidden = model(input_ids=given[3]["input_ids"][:, :8], output_hidden_states=True).hidden_states[0]
    expected = model.model.layers[0].input_layernorm(hidden)[0]
    assert torch.allclose(seen[NAMES[0]][3], expected, rtol=1e-10)


def test_two_processes_see_what_one_sees() -> None:
    """Each is given half of the rows; `reduce` adds up what the other has found."""
    model, given = tiny.make("llama").double(), batches()
    alone = look_at(model, given).left_products(4, dict.fromkeys(NAMES[2:], torch.ones(24, 1, dtype=torch.float64)))
    sums: list[Tensor] = []
    halves = []
    for half in (given[:2], given[2:]):
        noted: list[Tensor] = []
        other = iter(list(sums))
        context = look_at(model, half, reduce=lambda t, noted=noted, other=other: noted.append(t) or t + next(other, 0))
        halves.append(context.left_products(4, dict.fromkeys(NAMES[2:], torch.ones(24, 1, dtype=torch.float64))))
        sums = noted
    assert torch.allclose(halves[1][NAMES[2]], alone[NAMES[2]], rtol=1e-9)
    assert not torch.allclose(halves[0][NAMES[2]], alone[NAMES[2]], rtol=1e-3)


def test_the_model_is_left_as_it_was() -> None:
    model, given = tiny.make("llama").train(), batches()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    context = look_at(model, given)
    context.left_products(4, {NAMES[0]: torch.ones(24, 1)})
    context.inputs(4, lambda name, x: None)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_rows_without_trained_tokens_and_layers_out_of_the_way_are_said() -> None:
    model = tiny.make("llama")
    silent = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in batches()]
    with pytest.raises(ValueError, match="no gradient"):
        look_at(model, silent).left_products(4, {NAMES[0]: torch.ones(24, 1)})


def test_seed_words_reach_no_global_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    look_at(tiny.make("llama", seed=3), batches()).inputs(2, lambda name, x: None)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), expected)
    assert seeds.seed_of(1, "a") != seeds.seed_of(1, "b")


def test_gradients_that_are_not_finite_are_said_with_the_layer() -> None:
    model, given = tiny.make("llama"), batches()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="q_proj is not finite"):
        look_at(model, given).left_products(4, {NAMES[0]: torch.ones(24, 1)})
