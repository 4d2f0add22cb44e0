"""The word ssm-linear: which layers of Mamba, Mamba-2 and hybrid models it means, and that they train and merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from families import IDS, MAMBA, SMALL, model_of

import lrft
from lrft.adapters.storage import save_adapter
from lrft.errors import RecipeError
from lrft.export.merge import merge_adapter

SSM = {"num_heads": 12, "head_dim": 4, "expand": 2, "n_groups": 1, "chunk_size": 8, "state_size": 4}
BAMBA = {
    **SMALL,
    **{"mamba_n_heads": 12, "mamba_d_head": 4, "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_expand": 2},
    **{"mamba_chunk_size": 8, "attn_layer_indices": [1]},
}
JAMBA = {
    **{**SMALL, "num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    **{"expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4},
}
MAMBA2 = {"vocab_size": 300, "hidden_size": 24, "num_hidden_layers": 2, **SSM, **IDS}
FAMILIES = {
    "mamba": (MAMBA, ["in_proj", "in_proj", "x_proj", "x_proj"]),
    "mamba2": (MAMBA2, ["in_proj", "in_proj"]),
    "bamba": (BAMBA, ["in_proj"]),
    "jamba": (JAMBA, ["in_proj", "x_proj"]),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_it_means_the_blocks_own_layers_which_train_and_merge(kind: str, tmp_path: Path) -> None:
    words, expected = FAMILIES[kind]
    base = tiny.save(model_of(kind, words), tmp_path / "base")
    model, ids = model_of(kind, words).train(), torch.randint(3, 97, (2, 9))
    attached = lrft.attach(model, {"rank": 2, "target_modules": ["ssm-linear"]})
    assert sorted(name.rsplit(".", 1)[-1] for name in attached.modules) == expected
    optimizer = torch.optim.SGD(attached.trained().values(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        assert all(p.grad is not None for p in attached.trained().values())
        optimizer.step()
    assert all(attached.delta(name).any() for name in attached.modules)
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapter.mkdir()
    save_adapter(attached, adapter, base={"name": str(base)})
    merge_adapter(adapter, merged)
    assert (adapter / "adapter_config.json").exists(), "stock PEFT takes all of them"
    again = type(model).from_pretrained(merged).eval()
    assert torch.allclose(tiny.logits(again, ids), tiny.logits(model.eval(), ids), atol=1e-5)


def test_it_goes_together_with_other_words_and_exclusions() -> None:
    model = model_of("bamba", BAMBA)
    more = lrft.attach(model, {"rank": 2, "target_modules": ["ssm-linear", "q_proj"]})
    assert sorted(name.rsplit(".", 1)[-1] for name in more.modules) == ["in_proj", "q_proj"]
    less: dict[str, Any] = {"rank": 2, "target_modules": ["ssm-linear"], "exclude_modules": ["x_proj"]}
    found = lrft.attach(model_of("mamba", MAMBA), less).modules
    assert {name.rsplit(".", 1)[-1] for name in found} == {"in_proj"}


def test_a_model_without_such_blocks_is_told_so() -> None:
    with pytest.raises(RecipeError, match="ssm-linear means blocks of Mamba or Mamba-2, and this model has none"):
        lrft.attach(tiny.make("llama"), {"rank": 2, "target_modules": ["ssm-linear"]})


@pytest.mark.parametrize("word", ["all-linear", "ssm-linear"])
def test_a_word_for_targets_is_none_for_exclusions(word: str) -> None:
    with pytest.raises(RecipeError, match=f"exclude_modules: {word} matches no module"):
        lrft.attach(tiny.make("llama"), {"rank": 2, "exclude_modules": [word]})
