"""Whether a model is asked rightly: rows kept apart, logits that are a plain product; and what happens otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from lrft.data import Row, Rows
from lrft.data.collate import collate, ends_mask
from lrft.errors import CheckFailed
from lrft.model import packed_attention
from lrft.model.packed_attention import use_rowwise
from lrft.objectives.packing import (
    TOLERANCE,
    Layout,
    find_layout,
    kept_apart,
    others,
    packed_equals_alone,
    packed_form,
    telling_rows,
)
from lrft.objectives.sft import TokenLoss

SMALL = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
WINDOWED = {**SMALL, "sliding_window": 5, "head_dim": 6}


def rows_of(*lengths: int) -> Rows:
    generator = np.random.default_rng(0)
    made = [
        Row(generator.integers(3, 97, n).astype(np.int32), np.arange(n) >= n // 3, n // 3, "", "t.jsonl:", 1)
        for n in lengths
    ]
    return Rows.of(made)


def model_of(config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    use_rowwise(model)
    return model


MODELS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral, window": lambda: transformers.MistralConfig(**WINDOWED),
    "qwen2, window": lambda: transformers.Qwen2Config(
        **{**WINDOWED, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=6),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**WINDOWED, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=97, n_embd=24, n_layer=2, n_head=4, n_positions=256),
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_end_to_end_are_what_they_are_padded_with_gradients(name: str) -> None:
    """Trust 12."""
    model, rows = model_of(MODELS[name]()), rows_of(3, 17, 9, 4)
    found = find_layout(model, rows, packing="auto", compute="fp32")
    assert (found.form, found.warning) == ("rowwise", "")
    model.requires_grad_(False)
    embedding = model.get_input_embeddings().weight.requires_grad_()
    results = []
    for layout in (Layout("padded"), Layout("rowwise")):
        batch = collate(rows, [1, 0, 3, 2], pad_id=0, form=layout.form)
        loss = TokenLoss(model)(batch)
        results.append((loss, torch.autograd.grad(loss, embedding)[0]))
    (padded, expected), (packed, got) = results
    assert torch.allclose(packed, padded, rtol=1e-5)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-4)


BLOOM = {"vocab_size": 97, "hidden_size": 24, "n_layer": 2, "n_head": 4}
FALCON = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LFM2 = {**SMALL, "layer_types": ["conv", "full_attention"], "block_ff_dim": 32, "block_multiple_of": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def test_a_model_that_lets_rows_see_each_other_is_padded_aloud_or_refused() -> None:
    model, rows = model_of(transformers.BloomConfig(**BLOOM)), rows_of(4, 6, 9)
    found = find_layout(model, rows, packing="auto", compute="fp32")
    assert found.form == "padded"
    assert "packed sequences leak" in found.warning
    with pytest.raises(CheckFailed, match="packed sequences leak"):
        find_layout(model, rows, packing=True, compute="fp32")
    assert find_layout(model, rows, packing=False, compute="fp32").warning == ""


def test_a_small_leak_is_one() -> None:
    """Trust 12. Convolutions see the tokens of the row before, by less than any tolerance for rounding."""
    model, rows = model_of(transformers.Lfm2Config(**LFM2)), rows_of(9, 13)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv.conv" in name:
                parameter.mul_(0.02)
    ids = [torch.from_numpy(rows.tokens(i).astype(np.int64)) for i in range(2)]
    apart = kept_apart(model, ids, packed_form(model))
    assert apart.difference < TOLERANCE["fp32"]
    assert apart.leaks
    assert apart.moved_padded == 0
    assert find_layout(model, rows, packing="auto", compute="fp32").form == "padded"
    with pytest.raises(CheckFailed, match="move by"):
        find_layout(model, rows, packing=True, compute="fp32")


@pytest.mark.parametrize(
    "config",
    [
        lambda: transformers.MixtralConfig(**SMALL, **EXPERTS),
        lambda: transformers.GraniteMoeConfig(**SMALL, **EXPERTS),
    ],
)
def test_experts_that_round_otherwise_are_no_leak(config: Any) -> None:
    assert find_layout(model_of(config()), rows_of(9, 13), packing="auto", compute="fp32").form == "rowwise"


def test_one_row_gets_a_second_to_be_told_apart_from() -> None:
    for lengths in ((9,), (1, 9)):
        leaking = model_of(transformers.BloomConfig(**BLOOM))
        assert find_layout(leaking, rows_of(*lengths), packing="auto", compute="fp32").form == "padded"
        good = model_of(transformers.LlamaConfig(**SMALL))
        assert find_layout(good, rows_of(*lengths), packing="auto", compute="fp32").form == "rowwise"


def test_rows_of_a_model_that_says_where_they_begin_are_packed_whatever_its_version() -> None:
    """Falcon's mask asks for positions in some versions of transformers."""
    model, rows = model_of(transformers.FalconConfig(**FALCON)), rows_of(5, 5)
    one, two = (torch.from_numpy(rows.tokens(i).astype(np.int64)) for i in range(2))
    positions = torch.arange(5).repeat(2)[None]
    with torch.no_grad():
        after_one, after_two = (
            model(input_ids=torch.cat([first, two])[None], position_ids=positions, use_cache=False).logits[0, 5:]
            for first in (one, two)
        )
    apart = torch.equal(after_one, after_two)
    assert (find_layout(model, rows, packing="auto", compute="fp32").form == "packed") == apart


def test_other_tokens_stand_at_every_place_and_have_embeddings() -> None:
    for tokens in ([5, 9, 5], [3, 3], [0], [1, 1, 1]):
        row = torch.tensor(tokens)
        for other in others(row, [row]):
            assert (other != row).all()
            assert 0 <= other.min() <= other.max() <= max(1, row.max())


def test_logits_that_are_more_than_a_product_are_made_by_the_model() -> None:
    capped = transformers.Gemma2Config(**WINDOWED, final_logit_softcapping=2.0, attn_logit_softcapping=None)
    scaled = transformers.CohereConfig(**SMALL, logit_scale=0.5)
    rows = rows_of(4, 6, 9)
    for config in (capped, scaled):
        model = model_of(config)
        assert not find_layout(model, rows, packing="auto", compute="fp32").direct
    assert find_layout(model_of(transformers.LlamaConfig(**SMALL)), rows, packing="auto", compute="fp32").direct


def test_the_longest_row_is_asked_about_where_it_passes_a_border() -> None:
    rows = rows_of(9, 3, 17, 4)
    assert telling_rows(rows, transformers.LlamaConfig(**SMALL)) == [1, 3]
    assert telling_rows(rows, transformers.MistralConfig(**WINDOWED)) == [1, 3, 2]
    assert telling_rows(rows, transformers.MistralConfig(**{**WINDOWED, "sliding_window": 17})) == [1, 3]


def test_a_window_that_is_not_kept_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of(transformers.MistralConfig(**WINDOWED)), rows_of(3, 17, 4)
    monkeypatch.setattr(packed_attention, "window_mask", lambda length, window, device: None)
    assert find_layout(model, rows, packing="auto", compute="fp32").form == "padded"


def test_a_row_that_sees_its_neighbour_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(transformers.LlamaConfig(**SMALL))
    ids = [torch.from_numpy(rows_of(5, 7).tokens(i).astype(np.int64)) for i in range(2)]
    assert packed_equals_alone(model, ids, packed_form(model)) < 1e-5
    monkeypatch.setattr(packed_attention, "row_lengths", lambda mask: ([12], [0]))
    assert packed_equals_alone(model, ids, packed_form(model)) > 1e-2


def test_generation_and_padded_batches_use_transformers_own_masks() -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()
    ids = torch.randint(3, 97, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    before = model(input_ids=ids, attention_mask=mask).logits
    answer = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    use_rowwise(model)
    assert model.config._attn_implementation == packed_attention.NAME
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)
    again = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(again, answer)


def test_a_model_with_another_kernel_keeps_it() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).eval()
    use_rowwise(model)
    found = find_layout(model, rows_of(4, 6, 9), packing="auto", compute="fp32")
    assert (model.config._attn_implementation, found.form) == ("eager", "packed")


def test_the_ends_are_read_once_for_all_layers() -> None:
    mask = ends_mask([3, 1, 5])
    assert mask.shape == (1, 1, 1, 3)
    assert packed_attention.row_lengths(mask) == ([3, 1, 5], [0, 0, 0])
    mask.zero_()
    assert packed_attention.row_lengths(mask) == ([3, 1, 5], [0, 0, 0])


def test_a_model_without_parts_is_asked_for_its_logits() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model_of(transformers.LlamaConfig(**SMALL))
            self.config, self.device = self.inner.config, torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, use_cache: bool = False, **more: Any) -> Any:
            return SimpleNamespace(logits=self.inner(input_ids=input_ids, **more).logits)

    found = find_layout(Whole(), rows_of(4, 6), packing="auto", compute="fp32")
    assert (found.form, found.direct) == ("rowwise", False)
