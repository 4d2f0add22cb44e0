"""Pairs that share the forward pass of their prompt: losses, gradients and places, against each sequence alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from torch import Tensor, nn

import lrft
from lrft.data import Row, Rows
from lrft.data.collate import branches_mask
from lrft.model import packed_attention
from lrft.model.packed_attention import use_rowwise
from lrft.objectives import shared_prompt
from lrft.objectives.packing import Layout
from lrft.objectives.shared_prompt import collate, shared_tokens, sharing
from lrft.objectives.simpo import Simpo

ROWWISE = Layout("rowwise", direct=True, said="rows are apart")


def row(prompt: list[int], chosen: list[int], rejected: list[int], untrained: int = 0) -> Row:
    """untrained: tokens of both answers, the first ones."""
    ids = [np.array([*prompt, *answer]) for answer in (chosen, rejected)]
    marks = np.concatenate([np.arange(len(tokens)) >= len(prompt) + untrained for tokens in ids])
    return Row(np.concatenate(ids), marks, len(prompt), "", "f:", 0, parts=tuple(map(len, ids)))


ROWS = Rows.of(
    [
        row([5, 6, 7], [8, 9], [10, 11, 12, 13]),
        row([5, 6], [8, 9, 20], [8, 9, 21], untrained=1),  # one token more is shared
        row([4, 4, 9, 8, 7], [3], [6]),
        row([], [3, 4, 5, 6], [7, 8], untrained=1),  # nothing is
        row([9, 8, 7, 6, 5, 4], [30, 31], [30, 31, 32]),  # answers begin alike
    ]
)


def test_only_what_is_not_trained_is_shared() -> None:
    assert [shared_tokens(*ROWS.sequences(i)) for i in range(5)] == [3, 3, 5, 0, 6]
    batch = collate(ROWS, [1, 0])
    assert batch["input_ids"].tolist() == [[5, 6, 8, 9, 20, 9, 21, 5, 6, 7, 8, 9, 10, 11, 12, 13]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 0, 1, 2, 3, 4, 3, 4, 5, 6]]
    assert batch["attention_mask"].tolist() == [[[[5, 7, 12, 16], [0, 3, 0, 3]]]]
    assert batch["before"].tolist() == [2, 3, 2, 5, 9, 10, 9, 12, 13, 14]
    assert batch["targets"].tolist() == [9, 20, 9, 21, 8, 9, 10, 11, 12, 13]
    assert batch["of"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]


def models() -> dict[str, Any]:
    """Both without sums in float32, so that float64 is exact."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    yours = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    yours |= {"num_key_value_heads": 2, "sliding_window": 4, "use_bias": True}
    return {
        "gpt2": transformers.GPT2Config(vocab_size=40, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **sizes),
        "a window": transformers.Starcoder2Config(vocab_size=40, residual_dropout=0, embedding_dropout=0, **yours),
    }


@pytest.fixture(scope="module", params=["gpt2", "a window"])
def given(request: pytest.FixtureRequest) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(models()[request.param]).double().eval()
    use_rowwise(model)
    attached = lrft.attach(model, {"method": "lora", "rank": 2, "target_modules": "all-linear"}, seed=0)
    trained = list(attached.trained().values())
    tiny.disturb(trained, size=0.3)
    return model, trained


def asked(model: nn.Module, trained: list[Tensor], batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    losses = Simpo(beta=3.0).module(model, direct=True)
    total = torch.stack([losses(batch) for batch in batches]).sum()
    return total, torch.cat([g.flatten() for g in torch.autograd.grad(total, trained)])


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_the_loss_and_its_gradient_are_those_of_sequences_apart(micro: int, given: Any) -> None:
    objective = Simpo(beta=3.0)
    ids = [list(range(5))[at : at + micro] for at in range(0, 5, micro)]
    shared, apart = (
        asked(*given, [objective.collate(ROWS, some, pad_id=0, form=form) for some in ids])
        for form in ("shared", "padded")
    )
    for one, two in zip(shared, apart, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)


def test_it_is_used_where_the_model_answers_as_alone(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = given
    found = sharing(model, ROWS, ROWWISE, "fp32")
    assert (found.form, found.packed) == ("shared", True)
    assert found.said.endswith("a pair's answers share their prompt")
    padded = Layout("padded", direct=True)
    assert sharing(model, ROWS, padded, "fp32") is padded
    # A model that does not see the prompt again is noticed.
    monkeypatch.setattr(
        shared_prompt, "branches_mask", lambda lengths, shared: branches_mask(lengths, [0] * len(shared))
    )
    assert sharing(model, ROWS, ROWWISE, "fp32") is ROWWISE


def test_a_mask_of_branches_is_read_once() -> None:
    mask = collate(ROWS, [2, 3])["attention_mask"]
    assert packed_attention.row_lengths(mask) == ([6, 1, 4, 2], [0, 5, 0, 0])
    mask.zero_()
    assert packed_attention.row_lengths(mask) == ([6, 1, 4, 2], [0, 5, 0, 0])
