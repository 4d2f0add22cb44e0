"""The token loss in its chunked form against the stock one, with gradients; and what it asks of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor, nn
from transformers import OlmoeConfig, OlmoeForCausalLM

import lrft
from lrft.data import Row, Rows
from lrft.errors import UsageError
from lrft.objectives.cross_entropy import (
    LOGITS_AT_ONCE,
    Terms,
    chunked_cross_entropy,
    scaled,
    summed_cross_entropy,
)
from lrft.objectives.neftune import add_noise, noise, row_lengths
from lrft.objectives.sft import Sft, TokenLoss


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("terms", [Terms(), Terms(0.2), Terms(z_loss=0.1), Terms(0.3, 0.2)], ids=str)
@pytest.mark.parametrize("rows", [1, 64, 65, 300])
def test_chunked_equals_stock_with_gradients(rows: int, terms: Terms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 1)  # the least: 64 rows at once
    torch.manual_seed(0)
    head = nn.Linear(16, 50).double()
    hidden = torch.randn(rows, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (rows,))
    logits = head(hidden)
    smooth = terms.label_smoothing
    stock = nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smooth)
    stock = stock + terms.z_loss * (logits.exp().sum(-1).log() ** 2).sum()
    expected = gradients(stock * 3, hidden, head.weight, head.bias)
    found = chunked_cross_entropy(head, hidden, targets, None, terms)
    assert torch.allclose(found, stock, rtol=1e-12)
    for got, wanted in zip(gradients(found * 3, hidden, head.weight, head.bias), expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(chunked_cross_entropy(head, hidden, targets, None, terms), stock, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_comes_from_above_is_multiplied_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    """It holds the divisor of the step, and in fp16 a loss scale that float16 does not."""
    torch.manual_seed(0)
    gradient, slope = torch.randn(64, 16).mul(1e-3).to(dtype), torch.tensor(65536.0 / 77)
    if dtype == torch.float16:
        slope = torch.tensor(2.0**17 / 3)
    expected = (gradient.double() * slope.double()).to(dtype)
    assert torch.equal(scaled(gradient, slope), expected)
    assert not torch.equal(gradient * slope.to(dtype), expected)
    assert scaled(gradient, slope).isfinite().all()


def test_weights_multiply_each_tokens_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, and in batches of every form, against the sum written out."""
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 1)
    torch.manual_seed(0)
    head, hidden = nn.Linear(16, 50).double(), torch.randn(130, 16, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(0, 50, (130,)), torch.rand(130)
    dense = -(head(hidden).log_softmax(-1)[torch.arange(130), targets] * weights.double()).sum()
    found = chunked_cross_entropy(head, hidden, targets, weights)
    assert torch.allclose(found, dense, rtol=1e-10)
    for got, wanted in zip(gradients(found, hidden, head.bias), gradients(dense, hidden, head.bias), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(chunked_cross_entropy(head, hidden, targets, weights), dense, rtol=1e-10)
    model = tiny.make("llama").double()
    lengths, shares = (5, 9), (0.25, 3.0)
    made = [
        Row(np.arange(3, 3 + n, dtype=np.int32), np.arange(n) > 1, 2, "", "f:", 1, weight=weight)
        for n, weight in zip(lengths, shares, strict=True)
    ]
    rows, sft = Rows.of(made), Sft()
    alone = [TokenLoss(model)(sft.collate(Rows.of([each]), [0], pad_id=0, form="padded")).item() for each in made]
    one = [TokenLoss(model)(sft.collate(Rows.of([replace(r, weight=1.0)]), [0], pad_id=0, form="padded")) for r in made]
    assert alone == pytest.approx([w * loss.item() for w, loss in zip(shares, one, strict=True)], rel=1e-9)
    for form in ("padded", "packed"):
        batch = sft.collate(rows, [1, 0], pad_id=0, form=form)
        assert sft.batch_weight(batch) == sft.weight(rows, [0, 1]) == 0.25 * 3 + 3.0 * 7
        if form == "padded":
            for direct in (True, False):
                assert TokenLoss(model, direct=direct)(batch).item() == pytest.approx(sum(alone), rel=1e-9)


def test_no_trained_token_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    hidden = torch.randn(0, 16, requires_grad=True)
    found = chunked_cross_entropy(nn.Linear(16, 50), hidden, torch.zeros(0, dtype=torch.long))
    assert found.item() == 0
    assert gradients(found, hidden)[0].shape == (0, 16)


def test_the_tensor_of_all_logits_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 1)
    seen: list[int] = []
    head = nn.Linear(16, 50).requires_grad_(False)
    head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    hidden = torch.randn(300, 16, requires_grad=True)
    chunked_cross_entropy(head, hidden, torch.zeros(300, dtype=torch.long)).backward()
    assert seen == [64, 64, 64, 64, 44]  # each once: nothing is made again for the backward pass


@pytest.mark.parametrize("precise", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
def test_direct_loss_is_the_models_own(name: str, precise: torch.dtype) -> None:
    model, ids = tiny.make(name).to(precise), tiny.tokens(3, 17)
    attached = lrft.attach(model, {"method": "lora", "rank": 4}, seed=0)
    trained = list(attached.trained().values())
    tiny.disturb(trained)
    labels = ids.clone()
    labels[:, :5] = -100
    labels[1, 9] = -100
    batch = {"input_ids": ids, "labels": labels}
    own, direct = (TokenLoss(model, direct=d)(batch) for d in (False, True))
    stock = model(input_ids=ids).logits[:, :-1]
    expected = summed_cross_entropy(stock, labels[:, 1:])
    close = {"rtol": 1e-5, "atol": 1e-4} if precise == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    for found in (own, direct):
        assert torch.allclose(found, expected, **close)
        for got, wanted in zip(gradients(found, *trained), gradients(expected, *trained), strict=True):
            assert torch.allclose(got, wanted, **close)
        expected = summed_cross_entropy(model(input_ids=ids).logits[:, :-1], labels[:, 1:])


def test_an_adapter_on_the_head_gets_its_gradient() -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    keys = {"method": "lora", "rank": 4, "target_modules": ["lm_head", "q_proj"]}
    attached = lrft.attach(model, keys, seed=0)
    tiny.disturb(list(attached.trained().values()))
    trained = list(attached.trained().values())
    batch = {"input_ids": ids, "labels": ids}
    own, direct = (gradients(TokenLoss(model, direct=d)(batch), *trained) for d in (False, True))
    for got, wanted in zip(direct, own, strict=True):
        assert got.abs().max() > 0
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direct", [False, True])
def test_terms_beside_the_cross_entropy_act_in_training_alone(direct: bool) -> None:
    """By the definition on dense probabilities, in float64."""
    model, ids = tiny.make("llama").double(), tiny.tokens(2, 9)
    labels = ids.clone()
    labels[0, :4] = -100
    batch, chosen = {"input_ids": ids, "labels": labels}, labels[:, 1:] != -100
    losses = Sft(label_smoothing=0.1, z_loss=0.01).module(model, direct=direct)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1][chosen]
        logs, right = logits.log_softmax(-1), labels[:, 1:][chosen]
        plain = -logs.gather(1, right[:, None]).sum()
        spread = torch.full_like(logs, 0.1 / logs.shape[1]).scatter_add_(
            1, right[:, None], torch.full_like(logs[:, :1], 0.9)
        )
        smoothed = -(spread * logs).sum() + 0.01 * (logits.exp().sum(1).log() ** 2).sum()
        assert torch.allclose(losses.train()(batch), smoothed, rtol=1e-10)
        assert torch.allclose(losses.eval()(batch), plain, rtol=1e-10)
    assert (smoothed - plain).abs() > 1


@pytest.mark.parametrize("direct", [False, True])
def test_the_loss_of_routers_is_the_models_own(direct: bool) -> None:
    """transformers adds it to the mean of its loss; padding does not count."""
    model = OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
            pad_token_id=0,
        )
    ).train()
    ids = torch.randint(1, 64, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    model.router_aux_loss_coef = 0.5
    stock = model(**batch, output_router_logits=True).loss
    losses = Sft(router_aux_loss_coef=0.5).module(model, direct=direct).train()
    counted = int((labels[:, 1:] != -100).sum())
    assert torch.allclose(losses(batch) / counted, stock, rtol=1e-5)
    assert (
        losses(batch) - losses.eval()(batch)
    ) / counted > 0.5  # no less than the coefficient times top k over experts
    router = model.model.layers[0].mlp.gate.weight
    assert gradients(losses.train()(batch), router)[0].abs().sum() > 0
    assert "router_aux_loss_coef: 0.01" in Sft().module(model).checks()["mixture of experts"]
    with pytest.raises(UsageError, match="LlamaForCausalLM has no such loss"):
        Sft(router_aux_loss_coef=0.5).module(tiny.make("llama"))


def padded_and_packed() -> dict[str, dict[str, Tensor]]:
    """Rows of 3 and 6 tokens."""
    padded = {"input_ids": torch.ones(2, 6, dtype=torch.long), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    padded["attention_mask"][0, 3:] = 0
    packed = {"input_ids": torch.ones(1, 9, dtype=torch.long), "position_ids": torch.tensor([[*range(3), *range(6)]])}
    return {"padded": padded, "packed": packed, "bare": {"input_ids": torch.ones(1, 6, dtype=torch.long)}}


@pytest.mark.parametrize("form", ["padded", "packed", "bare"])
def test_noise_on_embeddings_is_uniform_within_its_bound(form: str) -> None:
    """NEFTune, algorithm 1: alpha / sqrt(L d), L the row's own tokens."""
    batch, width, alpha = padded_and_packed()[form], 4000, 5.0
    lengths = {"padded": [[3] * 3 + [0] * 3, [6] * 6], "packed": [[3] * 3 + [6] * 6], "bare": [[6] * 6]}[form]
    drawn = noise(row_lengths(batch), torch.zeros(*batch["input_ids"].shape, width), alpha)
    for values, length in zip(drawn.flatten(0, 1), [n for row in lengths for n in row], strict=True):
        bound = alpha / (length * width) ** 0.5 if length else 0.0
        assert values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert values.mean().abs() <= 0.05 * bound


def test_noise_comes_in_training_passes_alone_and_by_their_seed() -> None:
    batch = {"input_ids": tiny.tokens(), "labels": tiny.tokens()}
    losses = TokenLoss(tiny.make("llama"))
    add_noise(losses, 20.0)

    def loss(seed: int, *, training: bool = True, wanted: bool = True) -> float:
        torch.manual_seed(seed)
        with torch.set_grad_enabled(wanted):
            return losses.train(training)(batch).item()

    plain = loss(0, training=False)
    assert loss(0, wanted=False) == plain
    assert loss(1) == loss(1) != plain
    assert loss(1) != loss(2)


def test_a_run_with_noise_and_smoothing_is_resumed_in_the_same_bits(place: Place) -> None:
    keys = ("training.objective={sft: {label_smoothing: 0.1}}", "training.neftune_alpha=5", "checkpoint.every=3")
    straight = place.train(*keys, out="straight")
    runs.cut(straight, 3, place.root / "stopped")
    stopped = place.train(*keys, out="stopped", resume="last")
    assert runs.differing(runs.tensors(straight), runs.tensors(stopped)) == []
    losses = {
        out: [record["loss"] for record in runs.records(place.train(*keys[:many], out=out))]
        for out, many in (("none", 0), ("smooth", 1))
    }
    noisy = [record["loss"] for record in runs.records(straight)]
    assert len({*noisy, *losses["none"], *losses["smooth"]}) == 3 * runs.STEPS
