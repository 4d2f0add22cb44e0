"""Merging an adapter that masks heads and channels: a smaller plain model that answers what the masked one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from smaller import CHANNELS, CONFIGS, GROUP, HEADS, SIZE, family, places, smaller
from transformers import AutoModelForCausalLM, LlamaConfig

import lrft
from lrft.adapters.pruning import Masked
from lrft.adapters.storage import save_adapter
from lrft.cli.main import run_command
from lrft.export.merge import merge_adapter

INDEX = "model.safetensors.index.json"


def pruned(
    model: Any, folder: Path, heads: list[list[int]], channels: list[list[int]], *, shard: str = "1GB"
) -> tuple[Any, torch.Tensor]:
    """(handle, logits) of an adapter in folder/adapter over folder/base with these units left in each block."""
    tiny.save(model, folder / "base", max_shard_size=shard)
    attached = lrft.attach(model, {"method": "loraprune", "rank": 3})
    tiny.disturb(list(attached.trained().values()))
    for block, (units, lanes) in enumerate(zip(heads, channels, strict=True)):
        for place, left in (("self_attn.o_proj", places(units, GROUP * SIZE)), ("mlp.down_proj", lanes)):
            mask = attached.modules[f"model.layers.{block}.{place}"]
            assert isinstance(mask, Masked)
            mask.kept.zero_()[left] = 1
    (folder / "adapter").mkdir()
    save_adapter(attached, folder / "adapter", base={"name": str(folder / "base")})
    return attached, tiny.logits(model, tiny.tokens())


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_merged_model_is_smaller_and_answers_as_the_masked_one(name: str, tmp_path: Path) -> None:
    heads, channels = [[0, 3], [1, 2]], [[*range(1, 8), 11], [*range(3, 11)]]
    attached, expected = pruned(family(name), tmp_path, heads, channels)
    result = merge_adapter(tmp_path / "adapter", tmp_path / "out")
    model = loaded(tmp_path / "out")
    config = model.config
    # Llama takes only numbers of heads that divide the hidden size; 4 of 24 does.
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (2 * GROUP, 2, 8)
    assert result.shrunk is not None
    assert result.shrunk.filled == {"heads": 0, "channels": 0}
    assert (tiny.logits(model, tiny.tokens()) - expected).abs().max() <= 1e-4
    # The same by hand: whole layers merged, and what is left of them taken out.
    by_hand = attached.detach()
    for site, adapter in attached.modules.items():
        layer = by_hand.get_submodule(site)
        layer.weight.data = adapter.weight(layer.weight).detach()
    small = smaller(by_hand, heads, channels)
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in model.parameters())
    assert all(torch.allclose(p, dict(small.named_parameters())[n], atol=1e-6) for n, p in model.named_parameters())


def test_blocks_with_fewer_units_are_filled_up_and_so_is_a_number_that_the_family_does_not_take(tmp_path: Path) -> None:
    heads, channels = [[0, 1, 3], [2]], [list(range(9)), [5]]
    expected = pruned(family("mistral"), tmp_path, heads, channels, shard="4KB")[1]
    result = merge_adapter(tmp_path / "adapter", tmp_path / "out")
    model = loaded(tmp_path / "out")
    assert (model.config.num_key_value_heads, model.config.intermediate_size) == (3, 9)
    assert (tiny.logits(model, tiny.tokens()) - expected).abs().max() <= 1e-4
    assert result.shrunk.lines == [
        f"{HEADS * GROUP} -> {3 * GROUP} heads, {CHANNELS} -> 9 channels",
        "2 key-value heads and 8 channels of all blocks stay although pruned: one number holds for every block",
    ]
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    assert not list((tmp_path / "out").glob("*.smaller"))


def test_a_number_of_heads_that_a_family_does_not_take_is_rounded_up(tmp_path: Path) -> None:
    config = family("llama").config.to_dict() | {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**config)).eval()
    tiny.save(model, tmp_path / "base")
    attached = lrft.attach(model, {"method": "loraprune"})
    tiny.disturb(list(attached.trained().values()))
    for block, heads in enumerate((5, 2)):  # Llama takes what divides its hidden size, 24: 6 is the next
        attached.modules[f"model.layers.{block}.self_attn.o_proj"].kept[heads * 4 :] = 0
    (tmp_path / "adapter").mkdir()
    save_adapter(attached, tmp_path / "adapter", base={"name": str(tmp_path / "base")})
    shrunk = merge_adapter(tmp_path / "adapter", tmp_path / "out").shrunk
    assert (shrunk.heads, shrunk.filled["heads"]) == (6, 5)
    expected = tiny.logits(model, tiny.tokens())
    assert (tiny.logits(loaded(tmp_path / "out"), tiny.tokens()) - expected).abs().max() <= 1e-4


def test_a_block_that_is_whole_keeps_the_model_whole_and_merge_checks_and_says_what_it_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    every = [list(range(HEADS)), list(range(CHANNELS))]
    expected = pruned(family("qwen2"), tmp_path / "one", [every[0], [1]], [[0], every[1]])[1]
    assert merge_adapter(tmp_path / "one" / "adapter", tmp_path / "one" / "out").shrunk is None
    assert (tiny.logits(loaded(tmp_path / "one" / "out"), tiny.tokens()) - expected).abs().max() <= 1e-4
    pruned(family("qwen3"), tmp_path, [[0], [1]], [[3], [4]])
    assert run_command(["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "out"), "--no-verify"]) == 0
    assert "8 -> 2 heads, 20 -> 1 channels" in " ".join(capsys.readouterr().out.split())
