"""Adapters and differences of models as LoRAs: stock transformers and PEFT answer alike; what is lost is told."""

from __future__ import annotations

import json
from pathlib import Path

import on_disk
import pytest
import runs
import tiny
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from lrft.adapters.storage import read_adapter
from lrft.cli.main import run_command
from lrft.export.extract import extract_lora
from lrft.export.lora import Lora

CHANGED = ("q_proj.weight", "up_proj.weight")


def logits(model: object) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=tiny.tokens(2, 9)).logits  # type: ignore[attr-defined]
    return found


def tuned_of(base: Path, folder: Path, endings: tuple[str, ...], rank: int | None = None) -> Path:
    """A copy whose tensors with these endings differ, by an update of a rank."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if name.endswith(endings):
            change = torch.randn_like(p)
            if rank is not None and p.ndim == 2:
                change = torch.randn(p.shape[0], rank) @ torch.randn(rank, p.shape[1])
            p.data += 0.05 * change
    return tiny.save(model, folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.save_base(tmp_path_factory.mktemp("convert") / "base")


def test_an_update_of_low_rank_is_found_again(base: Path, tmp_path: Path) -> None:
    tuned = tuned_of(base, tmp_path / "tuned", CHANGED, rank=3)
    found = extract_lora(base, tuned, tmp_path / "out", Lora(rank=5))
    assert {name.split(".")[-1] for name in found.cuts} == {"q_proj", "up_proj"}
    assert not found.beside
    assert max(cut.error for cut in found.cuts.values()) < 1e-5
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    wanted = logits(AutoModelForCausalLM.from_pretrained(tuned))
    torch.testing.assert_close(logits(stock), wanted, rtol=1e-4, atol=1e-5)
    smallest = extract_lora(base, tuned, tmp_path / "smallest", Lora(energy=0.999999))
    assert {len(cut.A) for cut in smallest.cuts.values()} == {3}


def test_weights_that_are_stored_transposed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=24, n_layer=1, n_head=2, n_positions=16, vocab_size=tiny.VOCABULARY, bos_token_id=1, eos_token_id=2
    )
    base = tiny.save(AutoModelForCausalLM.from_config(config), tmp_path / "base")
    tuned = tuned_of(base, tmp_path / "tuned", ("c_fc.weight", "c_attn.weight"), rank=2)
    extract_lora(base, tuned, tmp_path / "out", Lora(rank=2))
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    wanted = logits(AutoModelForCausalLM.from_pretrained(tuned))
    torch.testing.assert_close(logits(stock), wanted, rtol=1e-4, atol=1e-5)


def test_what_a_lora_does_not_hold_is_named_and_too_much_of_it_is_exit_code_4(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tuned_of(base, tmp_path / "tuned", (*CHANGED, "layernorm.weight"), rank=2)
    command = ["convert", "--from-models", str(base), str(tuned), "--rank", "2", "-o", str(tmp_path / "out")]
    assert run_command([*command, "--tolerance", "5"]) == 0
    shown = " ".join("".join(capsys.readouterr()).split())
    assert "4 tensors that a LoRA does not hold keep the base's values: model.layers.0.input_layernorm.weight" in shown
    facts = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert len(facts["left out"]) == 4
    assert len(facts["layers"]) == len(read_adapter(tmp_path / "out").sites) == 4
    assert run_command([*command[:-1], str(tmp_path / "strict"), "--tolerance", "0.001"]) == 4
    assert "tolerance 0%" in " ".join(capsys.readouterr().err.split())


def test_an_adapter(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on_disk.save_adapter(tmp_path / "mora", base, "mora", rank=4)
    out = tmp_path / "out"
    assert run_command(["convert", str(tmp_path / "mora"), "--energy", "1", "-o", str(out)]) == 0
    assert "mean logit difference 0.0" in " ".join(capsys.readouterr().out.split())
    assert (out / "adapter_config.json").is_file()
    assert (
        run_command(
            ["convert", str(tmp_path / "mora"), "--rank", "1", "--tolerance", "0.01", "-o", str(tmp_path / "x")]
        )
        == 4
    )


def test_bad_input(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = on_disk.save_base(tmp_path / "other", "gpt2")
    for words, said, code in [
        ([str(base)], "takes BASE TUNED, two model folders, got 1", 2),
        ([str(base), str(base)], "no linear layer of", 4),
        ([str(base), str(other)], "are not of one architecture", 2),
        ([str(base), str(tmp_path / "nothing")], "the tuned model: there is no folder", 5),
        ([str(base), str(base), "--rank", "2", "--energy", "0.5"], "rank and energy exclude each other", 2),
    ]:
        found = run_command(["convert", "--from-models", *words, "-o", str(tmp_path / "out")])
        assert said in " ".join(capsys.readouterr().err.split()), words
        assert found == code
        assert not (tmp_path / "out").exists()
