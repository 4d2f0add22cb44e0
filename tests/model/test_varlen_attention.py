"""Packed rows in one call: the kernel is asked for what row by row computes, where it can do that and has shown it.

The kernel runs on a GPU alone. Here its place has what torch documents of it, written out densely.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from lrft.data.collate import branches_mask, ends_mask
from lrft.model import varlen_attention
from lrft.model.packed_attention import use_rowwise

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
WINDOWED = {**SMALL, "sliding_window": 5, "head_dim": 8}
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "as many key heads": lambda: transformers.LlamaConfig(**{**SMALL, "num_key_value_heads": 4}),
    "mistral, window": lambda: transformers.MistralConfig(**WINDOWED),
    "gemma3, a scale of its own": lambda: transformers.Gemma3TextConfig(
        **{**WINDOWED, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 3}
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=256),
}
LENGTHS = (3, 17, 9, 1)


class Documented:
    """torch.nn.attention.varlen.varlen_attn as its documentation has it: (T, heads, size), window (left, right)."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        self.calls += 1
        assert cu_seq_q.dtype == torch.int32
        assert max_q == max_k == int(cu_seq_q.diff().max())
        group = query.shape[1] // key.shape[1]
        assert enable_gqa == (group > 1)
        row = torch.bucketize(torch.arange(len(query)), cu_seq_q.long(), right=True)
        back = torch.arange(len(query))[:, None] - torch.arange(len(query))
        seen = row[:, None] == row
        left, right = window_size
        seen &= (back <= left) | (left < 0)
        seen &= (-back <= right) | (right < 0)
        keys, values = (t.repeat_interleave(group, dim=1) for t in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, keys) * (scale or 1 / math.sqrt(query.shape[-1]))
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), values)


def made(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    use_rowwise(model)
    return model


def answered(model: Any, mask: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Logits of packed rows, and their gradient for the embeddings."""
    torch.manual_seed(1)
    ends = [0, *mask[0, 0, 0].tolist()]
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise(ends)])[None]
    hidden = model.get_input_embeddings()(torch.randint(3, 97, (1, tokens))).detach().requires_grad_()
    logits = model(inputs_embeds=hidden, position_ids=positions, attention_mask=mask, use_cache=False).logits
    (gradient,) = torch.autograd.grad(logits.square().sum(), hidden)
    return logits.detach(), gradient


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> Documented:
    kernel = Documented()
    monkeypatch.setattr(varlen_attention, "kernel", lambda: kernel)
    monkeypatch.setattr(varlen_attention, "works", lambda device, dtype, size: True)
    return kernel


@pytest.mark.parametrize("name", MODELS)
def test_one_call_is_row_by_row(name: str, documented: Documented, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(MODELS[name]())
    mask = ends_mask(LENGTHS)
    logits, gradient = answered(model, mask, sum(LENGTHS))
    assert documented.calls == model.config.num_hidden_layers
    monkeypatch.setattr(varlen_attention, "works", lambda device, dtype, size: False)
    by_rows, wanted = answered(model, mask, sum(LENGTHS))
    assert documented.calls == model.config.num_hidden_layers, "row by row calls another kernel"
    assert (logits - by_rows).abs().max() < 1e-9 * by_rows.abs().max()
    assert (gradient - wanted).abs().max() < 1e-9 * wanted.abs().max()


def test_rows_that_share_a_prompt_go_row_by_row(documented: Documented) -> None:
    model = made(MODELS["llama"]())
    ids = torch.randint(3, 97, (1, 13))
    mask = branches_mask([6, 7], [0, 5])
    positions = torch.cat([torch.arange(6), torch.arange(5, 12)])[None]
    model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    assert documented.calls == 0


def test_what_the_kernel_does_not_do_goes_row_by_row(documented: Documented) -> None:
    def takes(size: int = 8, values: int | None = None, batch: int = 1, **kwargs: Any) -> bool:
        q, v = torch.zeros(batch, 2, 3, size), torch.zeros(batch, 2, 3, values or size)
        return varlen_attention.takes(q, q, v, kwargs)

    assert takes()
    assert takes(256)
    assert takes(dropout=0.0, softcap=None)
    assert not takes(12), "sizes that eight divides"
    assert not takes(264)
    assert not takes(values=16), "values of another size"
    assert not takes(batch=2)
    assert not takes(dropout=0.1)
    assert not takes(softcap=30.0)
    assert not takes(position_bias=torch.zeros(1))
    torch.use_deterministic_algorithms(True)
    try:
        assert not takes(), "its backward pass adds in any order"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_device_without_the_kernel_goes_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not varlen_attention.works(torch.device("cpu"), torch.bfloat16, 64)
    assert not varlen_attention.works(torch.device("cuda"), torch.float32, 64), "it has half precision alone"
    assert not varlen_attention.works(torch.device("cuda", 0), torch.bfloat16, 48), "there is no such device here"
    assert varlen_attention.kernel() is not None, "this torch has it"
