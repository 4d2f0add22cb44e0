"""Adapters on models whose names PEFT translates, against stock PEFT; and the rule itself against PEFT's tables."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils import transformers_weight_conversion as of_peft
from shapes import EXPERTS, HEADS, LINEAR, ROUTED, SMALL, SSM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import lrft
from lrft.adapters.attached import Attached
from lrft.adapters.peft_names import MAMBA, REFUSED_IN_MAMBA, words_of_experts
from lrft.adapters.storage import save_adapter

LATENT = {
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4},
    "num_key_value_heads": 4,
}
MOST = {
    "deepseek_v2": {**ROUTED, **LATENT},
    "deepseek_v3": {**ROUTED, **LATENT},
    "glm4_moe": {**ROUTED, **HEADS},
    "ernie4_5_moe": {
        **{"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 12},
        "moe_layer_start_index": 1,
    },
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 12},
    "qwen3_next": {**EXPERTS, **LINEAR, **HEADS, "shared_expert_intermediate_size": 12},
}
PLAIN = {
    "qwen3_moe": {**EXPERTS, **HEADS},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "lfm2_moe": {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "qwen3_5_text": {**LINEAR, **HEADS},
    "bamba": {
        **{"mamba_n_heads": 8, "mamba_d_head": 4, "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_expand": 2},
        **{"mamba_chunk_size": 8, "attn_layer_indices": [1]},
    },
}


def model_of(kind: str, more: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SMALL, **more})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.1)
    return model


def save(folder: Path, model: Any, words: Any = "lora", **more: Any) -> Attached:
    attached = lrft.attach(model, {"method": words, "rank": 1, **more})
    tiny.disturb(list(attached.trained().values()))
    model.eval()
    save_adapter(attached, folder, base={"name": "base"})
    return attached


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


def differs(theirs: Any, ours: Any, untouched: Any) -> float:
    """Largest difference of stock PEFT's logits from ours over what the adapter changes."""
    ids = tiny.tokens()
    expected, before = tiny.logits(ours, ids), tiny.logits(untouched, ids)
    return ((tiny.logits(theirs, ids) - expected).abs().max() / (expected - before).abs().max()).item()


@pytest.mark.parametrize("kind", [*MOST, *PLAIN])
def test_stock_peft_answers_as_the_adapter_does_where_it_translates_names(kind: str, tmp_path: Path) -> None:
    """Trust 24."""
    ours = model_of(kind, {**MOST, **PLAIN}[kind])
    untouched = copy.deepcopy(ours)
    save(tmp_path, ours, dropout=0.1)
    config = config_of(tmp_path)
    assert bool(config["target_parameters"]) == (kind in MOST)
    assert config["lora_dropout"] == (0.0 if kind in MOST else 0.1)
    theirs = PeftModel.from_pretrained(copy.deepcopy(untouched), tmp_path).eval()
    assert differs(theirs, ours, untouched) < 1e-4


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys", "ignore:The following alpha_pattern keys")
def test_ranks_and_factors_of_layers_that_are_named_by_their_weight(tmp_path: Path) -> None:
    """PEFT takes them, and says that it did not."""
    ours = model_of("deepseek_v3", MOST["deepseek_v3"])
    untouched = copy.deepcopy(ours)
    overrides = {"*.0.mlp.*": {"rank": 3}, "*shared_experts.up_proj": {"scale": 0.3}, "*o_proj": {"rank": 2}}
    save(tmp_path, ours, overrides=overrides)
    theirs = PeftModel.from_pretrained(copy.deepcopy(untouched), tmp_path).eval()
    assert differs(theirs, ours, untouched) < 1e-4
    (tmp_path / "lrft.json").unlink()
    again = copy.deepcopy(untouched)
    lrft.load_adapter(again, tmp_path)
    assert differs(again, ours, untouched) < 1e-4


def test_what_peft_cannot_do_is_kept_in_our_own_format(tmp_path: Path) -> None:
    for kind, more, words in (("deepseek_v3", MOST["deepseek_v3"], "dora"), ("mamba2", SSM, "lora")):
        folder = tmp_path / kind
        folder.mkdir()
        ours = model_of(kind, more)
        untouched = copy.deepcopy(ours)
        save(folder, ours, words)
        assert not (folder / "adapter_config.json").exists()
        assert not (folder / "adapter_model.safetensors").exists()
        again = copy.deepcopy(untouched)
        lrft.load_adapter(again, folder)
        assert differs(again, ours, untouched) < 1e-5


def test_without_the_refused_layers_the_folder_is_peft_s(tmp_path: Path) -> None:
    ours = model_of("mamba2", SSM)
    untouched = copy.deepcopy(ours)
    save(tmp_path, ours, target_modules=["in_proj"])
    theirs = PeftModel.from_pretrained(copy.deepcopy(untouched), tmp_path).eval()
    assert differs(theirs, ours, untouched) < 1e-4


def test_a_name_that_means_two_layers_to_peft_is_none(tmp_path: Path) -> None:
    """PEFT compares a name's end after a dot: "a" means "b.a" too."""

    class Pair(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 4), torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b["a"](self.a(x))

    attached = lrft.attach(Pair(), {"rank": 2, "target_modules": ["a"], "exclude_modules": ["b.a"]})
    assert list(attached.modules) == ["a"]
    save_adapter(attached, tmp_path, base={"name": "base"})
    assert not (tmp_path / "adapter_config.json").exists()


def test_every_name_that_stock_peft_translates_is_known() -> None:
    known = of_peft._MODEL_TO_CONVERSION_PATTERN
    translated = {
        kind: of_peft._MOE_TARGET_MODULE_MAPPING[entry].keys()
        for kind, entry in known.items()
        if entry in of_peft._MOE_FUSED_TARGETS and get_checkpoint_conversion_mapping(kind) is not None
    }
    assert len(translated) > 10
    for kind, words in translated.items():
        assert words_of_experts(kind) >= words, kind


def test_every_type_that_stock_peft_refuses_is_known() -> None:
    config = LoraConfig(target_modules=["x"])

    def refused(kind: str, word: str) -> bool:
        try:
            _check_lora_target_modules_mamba(config, SimpleNamespace(config=SimpleNamespace(model_type=kind)), word)
        except ValueError:
            return True
        return False

    words = {*REFUSED_IN_MAMBA, "in_proj", "x_proj", "o_proj", "q_proj"}
    found = {(kind, word) for kind in CONFIG_MAPPING_NAMES for word in words if refused(kind, word)}
    assert found == {(kind, word) for kind in MAMBA for word in REFUSED_IN_MAMBA}
