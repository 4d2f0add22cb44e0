"""The token loss in its chunked form against the stock one, with gradients; and what it asks of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.data import Row, Rows
from lrft.objectives.cross_entropy import LOGITS_AT_ONCE, chunked_cross_entropy, summed_cross_entropy
from lrft.objectives.sft import Sft, TokenLoss


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 300])
def test_chunked_equals_stock_with_gradients(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 1)  # the least: 64 rows at once
    torch.manual_seed(0)
    head = nn.Linear(16, 50).double()
    hidden = torch.randn(rows, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (rows,))
    stock = nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    expected = gradients(stock * 3, hidden, head.weight, head.bias)
    found = chunked_cross_entropy(head, hidden, targets)
    assert torch.allclose(found, stock, rtol=1e-12)
    for got, wanted in zip(gradients(found * 3, hidden, head.weight, head.bias), expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(chunked_cross_entropy(head, hidden, targets), stock, rtol=1e-12)


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
