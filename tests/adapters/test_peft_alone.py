"""Folders of PEFT in which no layer is adapted: norms alone, rows of tokens alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from on_disk import save_base
from transformers import AutoModelForCausalLM

import lrft
from lrft.adapters.peft_import import placed, read_any
from lrft.adapters.start_from import start_from
from lrft.errors import CheckFailed, UsageError
from lrft.export.merge import merge_adapter
from lrft.inspection.inspect import inspect_adapter

MADE: dict[str, tuple[str, Any]] = {
    "norms": ("llama", lambda: peft.LNTuningConfig()),
    "norms-with-biases": ("gpt2", lambda: peft.LNTuningConfig()),
    "norms-and-head": ("llama", lambda: peft.LNTuningConfig(modules_to_save=["lm_head"])),
    "tokens": ("llama", lambda: peft.TrainableTokensConfig(token_indices=[14, 50])),
    "tokens-of-both": (
        "llama",
        lambda: peft.TrainableTokensConfig(token_indices=[14, 50], target_modules=["embed_tokens", "lm_head"]),
    ),
    "tokens-tied": ("llama-tied", lambda: peft.TrainableTokensConfig(token_indices=[14, 50])),
}


pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type")


def made(case: str, folder: Path) -> Any:
    model_name, config = MADE[case]
    model: Any = peft.get_peft_model(tiny.make(model_name), config())
    tiny.disturb([p for p in model.parameters() if p.requires_grad])
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("case", MADE)
def test_they_are_read_as_stock_peft_reads_them_and_merged(case: str, tmp_path: Path) -> None:
    theirs = made(case, tmp_path / "theirs")
    expected, ids = tiny.logits(theirs, tiny.tokens()), tiny.tokens()
    model = tiny.make(MADE[case][0])
    assert (tiny.logits(model, ids) - expected).abs().max() > 1e-2
    attached = lrft.load_adapter(model, tmp_path / "theirs")
    assert not attached.modules
    torch.testing.assert_close(tiny.logits(model, ids), expected, rtol=1e-5, atol=1e-5)
    base = save_base(tmp_path / "base", MADE[case][0])
    merge_adapter(tmp_path / "theirs", tmp_path / "merged", base_model=str(base))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(tiny.logits(merged, ids), expected, rtol=1e-5, atol=1e-5)


def test_a_run_with_another_method_starts_from_it_and_inspect_has_nothing_to_measure(tmp_path: Path) -> None:
    theirs = made("norms", tmp_path)
    model = tiny.make("llama")
    attached = lrft.attach(model, {"method": "dora", "norms": True})
    assert start_from(attached, placed(read_any(tmp_path), model)).as_it_is
    torch.testing.assert_close(tiny.logits(model, tiny.tokens()), tiny.logits(theirs, tiny.tokens()))
    with pytest.raises(UsageError, match="adapts no layer"):
        inspect_adapter(tmp_path, base_model=str(save_base(tmp_path / "base", "llama")))


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    made("tokens", tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"new_key": 3}))
    with pytest.raises(CheckFailed, match="new_key is set, a setting that lrft does not know"):
        read_any(tmp_path)
    path.write_text(json.dumps(config | {"token_indices": None}))
    with pytest.raises(CheckFailed, match="trainable_token_indices does not say which"):
        read_any(tmp_path)
