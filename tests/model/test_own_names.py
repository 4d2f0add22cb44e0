"""Which types of models are merged without asking transformers, and that it would have said the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from shapes import SMALL
from transformers import AutoConfig, AutoModelForCausalLM

from lrft.model import linear
from lrft.model.own_names import OWN_NAMES, reads_own_names
from lrft.model.stored import Source, Stored


@pytest.mark.parametrize("kind", sorted(OWN_NAMES))
def test_transformers_reads_every_layer_under_its_own_name(kind: str) -> None:
    """In a whole model; one that was saved without its outer part has other names, and is asked about."""
    words = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    if kind in ("gpt2", "gptj"):
        words = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **words))
    layers = [f"{name}.weight" for name, _ in linear.named_linears(model)]
    stored = Stored(model, model.state_dict())
    assert len(layers) > 4
    assert {name: stored.source(name) for name in layers} == {name: Source((name,), True) for name in layers}


@pytest.mark.parametrize(
    ("config", "own"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "mixtral"}, False),
        ({"model_type": "llama", "auto_map": {"AutoModel": "other.Model"}}, False),
        ({"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}, False),
        ({}, False),
        ([], False),
    ],
)
def test_code_of_its_own_or_packed_weights_are_asked_about(config: object, own: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert reads_own_names(tmp_path) is own


def test_a_configuration_that_cannot_be_read_is_asked_about(tmp_path: Path) -> None:
    assert not reads_own_names(tmp_path)
