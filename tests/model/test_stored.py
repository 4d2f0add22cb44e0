"""Under which names weights are stored: merging families that transformers renames, and what no file can take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
import transformers
from on_disk import save_adapter
from runs import Place
from safetensors.torch import load_file
from shapes import HEADS, LINEAR, SMALL, SSM
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter

from lrft.cli.main import run_command
from lrft.errors import CheckFailed
from lrft.export.merge import merge_adapter
from lrft.export.merge_places import names_in
from lrft.model import stored as bases
from lrft.model.load import load_skeleton
from lrft.model.weights import weight_files

TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))


def save(model: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.1)
    return tiny.save(model.eval(), folder)


def language_part_of_qwen3_5(folder: Path) -> Path:
    """The whole model is stored; the language part is trained, under shorter names."""
    config = transformers.Qwen3_5Config(
        text_config={**SMALL, **LINEAR, **HEADS},
        vision_config={**TOWER, "patch_size": 14, "num_position_embeddings": 16},
        **{"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93},
    )
    return save(transformers.Qwen3_5ForConditionalGeneration(config), folder)


def nemotron_h(folder: Path) -> Path:
    """Stored as backbone.*, loaded as model.*"""
    more = {f"mamba_{name}": SSM[name] for name in ("num_heads", "head_dim")}
    config = transformers.NemotronHConfig(
        **{**SMALL, **HEADS, **more, "num_hidden_layers": 3, "layers_block_type": ["mamba", "attention", "mlp"]},
        **{"n_groups": 1, "ssm_state_size": 4, "chunk_size": 8},
    )
    return save(transformers.NemotronHForCausalLM(config), folder)


@pytest.mark.parametrize("make", [language_part_of_qwen3_5, nemotron_h])
def test_a_base_that_is_renamed_at_loading_is_merged(make: Any, tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    attached = save_adapter(tmp_path / "adapter", base, size=0.2)
    stored = load_file(base / "model.safetensors")
    assert not any(f"{name}.weight" in stored for name in attached.modules)
    merge_adapter(tmp_path / "adapter", tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == stored.keys()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    ids = tiny.tokens()
    expected = tiny.logits(attached.model, ids)
    with attached.disabled():
        change = (tiny.logits(attached.model, ids) - expected).abs().max()
    assert (tiny.logits(merged, ids) - expected).abs().max() < 1e-4 * change


class FusedConfig(LlamaConfig):
    model_type = "lrft_test_fused"


class FusedForCausalLM(LlamaForCausalLM):
    config_class = FusedConfig


@pytest.fixture
def fused() -> type[FusedForCausalLM]:
    """A family whose files hold two layers in one tensor, as transformers lets it be declared."""
    if get_checkpoint_conversion_mapping(FusedConfig.model_type) is None:
        AutoConfig.register(FusedConfig.model_type, FusedConfig)
        AutoModelForCausalLM.register(FusedConfig, FusedForCausalLM)
        rule = WeightConverter(
            source_patterns="mlp.both.weight",
            target_patterns=["mlp.gate_proj.weight", "mlp.up_proj.weight"],
            operations=[Chunk(dim=0)],
        )
        register_checkpoint_conversion_mapping(FusedConfig.model_type, [rule])
    return FusedForCausalLM


def fused_base(kind: type[FusedForCausalLM], folder: Path, vocabulary: int = tiny.VOCABULARY) -> Path:
    base = save(kind(FusedConfig(**{**SMALL, "vocab_size": vocabulary})), folder)
    assert "model.layers.0.mlp.both.weight" in load_file(base / "model.safetensors")
    return base


def test_a_layer_that_shares_its_tensor_with_another_is_refused_by_name(fused: Any, tmp_path: Path) -> None:
    base = fused_base(fused, tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, target_modules=["up_proj"])
    with pytest.raises(CheckFailed, match=r"up_proj: transformers builds its weight from .*mlp\.both\.weight"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out")
    attached = save_adapter(tmp_path / "others", base, target_modules=["q_proj", "down_proj"])
    merge_adapter(tmp_path / "others", tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.allclose(tiny.logits(merged, tiny.tokens()), tiny.logits(attached.model, tiny.tokens()), atol=1e-5)


def test_check_and_the_first_screen_say_that_a_base_cannot_be_merged(
    fused: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.make(tmp_path)
    vocabulary = AutoConfig.from_pretrained(tmp_path / "base").vocab_size
    fused_base(fused, tmp_path / "base", vocabulary)
    said = "merging into this base is not possible:"
    recipe = str(tmp_path / "recipe.yaml")
    assert run_command(["check", recipe]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert run_command(["train", recipe, "training.max_steps=2", "training.epochs=null"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"PEFT LoRA (unchanged); {said}" in told
    assert "lrft merge" not in told
    assert run_command(["check", recipe, "adapter.target_modules=[q_proj]"]) == 0
    assert said not in " ".join(capsys.readouterr().out.split())
    assert runs.steps(place.root / "run")


def test_names_go_where_transformers_loads_them(tmp_path: Path) -> None:
    base = language_part_of_qwen3_5(tmp_path / "base")
    names = names_in(weight_files(base))
    stored = bases.Stored(load_skeleton(base), names)
    expected = bases.Source(("model.language_model.layers.1.mlp.up_proj.weight",), True)
    assert stored.source("model.layers.1.mlp.up_proj.weight") == expected
    assert stored.source("model.language_model.layers.1.mlp.up_proj.weight") == expected  # as the whole model has it
    assert stored.source("model.layers.2.mlp.up_proj.weight") is None
