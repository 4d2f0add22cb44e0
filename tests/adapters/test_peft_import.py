"""Adapters that stock PEFT has made, merged and measured; what of them is refused; and the way on from any adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from on_disk import save_base
from peft import LoraConfig, get_peft_model
from runs import Place
from transformers import AutoModelForCausalLM

import lrft
from lrft.adapters import peft_import
from lrft.cli.main import run_command
from lrft.errors import UsageError
from lrft.export.merge import merge_adapter
from lrft.verification.merge import CheckFailed, verify_merge

ALL = "all-linear"
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "patterns": (
        "llama",
        {"target_modules": ALL, "rank_pattern": {"down_proj": 3}, "alpha_pattern": {"q_proj": 9}, "use_rslora": True},
    ),
    "dora": ("llama", {"target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))


def peft_folder(folder: Path, base: Path, **config: Any) -> Any:
    """A LoRA made, disturbed and saved by PEFT itself."""
    made = LoraConfig(task_type="CAUSAL_LM", **{"r": 2, "lora_alpha": 6, **config})
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), made)
    tiny.disturb([p for n, p in model.named_parameters() if p.requires_grad], size=0.1)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("case", CONFIGS)
def test_merged_and_loaded_it_answers_as_peft_does(case: str, tmp_path: Path) -> None:
    name, config = CONFIGS[case]
    base, adapter = save_base(tmp_path / "base", name), tmp_path / "adapter"
    theirs = peft_folder(adapter, base, **config)
    expected = tiny.logits(theirs, tiny.tokens())
    merge_adapter(adapter, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(tiny.logits(merged, tiny.tokens()), expected, atol=1e-4)
    assert not torch.allclose(tiny.logits(tiny.make(name), tiny.tokens()), expected, atol=1e-2)
    loaded = AutoModelForCausalLM.from_pretrained(base).eval()
    lrft.load_adapter(loaded, adapter)
    assert torch.allclose(tiny.logits(loaded, tiny.tokens()), expected, atol=1e-4)
    assert "A PEFT adapter, merged by lrft" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_the_commands_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter = runs.save_base(tmp_path / "base"), tmp_path / "adapter"
    peft_folder(adapter, base, target_modules=["q_proj", "down_proj"], lora_alpha=60)
    rows = runs.write_rows(tmp_path / "rows.jsonl", runs.rows(3))
    assert run_command(["merge", str(adapter)]) == 2
    assert "-o FOLDER" in capsys.readouterr().err
    assert run_command(["merge", str(adapter), "-o", str(tmp_path / "merged")]) == 0
    assert "merged vs. adapter" in capsys.readouterr().out
    losses = []
    for target in (adapter, tmp_path / "merged", base):
        assert run_command(["eval", str(target), "--data", str(rows), "--no-generate", "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != pytest.approx(losses[2], rel=1e-2)


def test_the_check_after_a_merge_sees_another_adapter_of_peft(tmp_path: Path) -> None:
    base = runs.save_base(tmp_path / "base")
    peft_folder(tmp_path / "one", base, target_modules=["q_proj"])
    peft_folder(tmp_path / "two", base, target_modules=["down_proj"], lora_alpha=60)
    merge_adapter(tmp_path / "one", tmp_path / "out")
    with pytest.raises(CheckFailed):
        verify_merge(tmp_path / "out", tmp_path / "two", base_folder=base)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"lora_bias": True}, "lora_bias: True is set"),
        ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, "ensure_weight_tying with modules_to_save"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A"),
        ({"target_parameters": ["input_layernorm.weight"]}, "it holds more than updates of linear layers"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is set"),
        ({"new_variant_config": {"x": 1}}, "new_variant_config is set, a setting that lrft does not know"),
        ({"init_lora_weights": "pissa"}, "modifies the base weights"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_by_name(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    base, adapter = save_base(tmp_path / "base", "llama"), tmp_path / "adapter"
    by_hand = (
        "ensure_weight_tying",
        "new_variant_config",
        "init_lora_weights",
        "layer_replication",
        "target_parameters",
        "lora_bias",
    )
    later = {key: value for key, value in config.items() if key in by_hand}
    made = {key: value for key, value in config.items() if key not in by_hand}
    peft_folder(adapter, base, **{"target_modules": ["q_proj"], **made})
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | later))
    if later.get("target_parameters") == ["input_layernorm.weight"]:
        runs.files.write_tensors(
            adapter / "adapter_model.safetensors",
            {
                **runs.files.read_tensors(adapter / "adapter_model.safetensors"),
                "base_model.model.model.layers.0.input_layernorm.weight": torch.ones(24),
            },
        )
    for use in (
        lambda: merge_adapter(adapter, tmp_path / "out"),
        lambda: lrft.load_adapter(tiny.make("llama"), adapter),
        lambda: peft_import.read_any(adapter),
    ):
        with pytest.raises(UsageError) as caught:
            use()
        assert said in caught.value.message
    assert not (tmp_path / "out").exists()


def test_the_way_on_from_an_adapter_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place.make(tmp_path)
    run = place.train("training.epochs=1")
    for adapter in (run, run / "best"):
        assert run_command(["check", str(tmp_path / "recipe.yaml"), f"model={adapter}"]) == 5
        assert f"lrft merge {adapter} -o FOLDER" in " ".join(capsys.readouterr().err.split())
    for key in ("adapter_name_or_path", "lora_model_dir", "init_from"):
        recipe = tmp_path / "recipe.yaml"
        text = recipe.read_text()
        recipe.write_text(text.replace("  rank: 4\n", f"  rank: 4\n  {key}: stage1/best\n"))
        assert run_command(["check", str(recipe)]) == 2
        assert "In lrft: adapter.start_from" in " ".join(capsys.readouterr().err.split()), key
        recipe.write_text(text)
