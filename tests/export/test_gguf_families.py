"""Each family as .gguf: read back by transformers, and answered by llama.cpp, merged and as base with a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_families
import pytest
import torch
from gguf import GGUFReader

from lrft.adapters.storage import load_adapter
from lrft.cli.main import run_command
from lrft.export.gguf import convert, find_converter, ready_tokenizer
from lrft.model.load import load_model

ASKED = ("turn on the light", "what time is it?", "Köln 12", "hello world, the answer is forty two. What is the")
# What transformers does not read of a file: the difference that is shown is then that of the weights.
UNREAD = {
    "llama, rope llama3": "rope_parameters",
    "llama, rope linear, tied": "rope_parameters",
    "llama, rope yarn": "rope_parameters",
    "gemma3": "query_pre_attn_scalar",
    "gemma2, small": "query_pre_attn_scalar, final_logit_softcapping, attn_logit_softcapping",
    "phi3, longrope": "rope_parameters",
}


def greedy(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    made = [model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, pad_token_id=0) for ids in prompts]
    texts = [m[0, len(ids) :] for m, ids in zip(made, prompts, strict=True)]
    return [tokenizer.decode(text, skip_special_tokens=True).lstrip() for text in texts]


@pytest.mark.all
@pytest.mark.parametrize("family", gguf_families.FAMILIES)
def test_llama_cpp_answers_as_transformers_does(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xllamacpp", reason="NOT TESTED WITH LLAMA.CPP: pip install xllamacpp")
    from common.llama_cpp import answers

    pre = gguf_families.PRE.get(family)
    place = gguf_families.knowing(tmp_path / "converter", pre) if pre else gguf_families.converter()
    base, merged, lora = tmp_path / "base", tmp_path / "merged", tmp_path / "lora"
    tokenizer = gguf_families.base(base, family)
    adapter = gguf_families.adapter(tmp_path / "adapter", base, tokenizer)
    code = run_command(["export", str(adapter), "--to", "gguf", "dtype=f32", f"converter={place}", "-o", str(merged)])
    said = capsys.readouterr()
    if family == "gemma":
        assert code == 1
        assert "architecture gemma is not supported" in said.err
    else:
        assert code == 0, said.err
        assert UNREAD.get(family, "same first token 100.00%") in " ".join(said.out.split())
        assert ("does not read" in said.out) == (family in UNREAD)
    assert run_command(["export", str(adapter), "--to", "gguf-lora", f"converter={place}", "-o", str(lora)]) == 0
    convert(find_converter(str(place)), base, tmp_path / "base.gguf", "f32", "base")
    model, prompts = load_model(base, dtype=torch.float32).eval(), [tokenizer(text)["input_ids"] for text in ASKED]
    untrained = greedy(model, tokenizer, prompts)
    load_adapter(model, adapter)
    expected = greedy(model, tokenizer, prompts)
    for found in (
        answers(merged / "model.gguf", prompts, 16),
        answers(tmp_path / "base.gguf", prompts, 16, lora / "lora.gguf"),
    ):
        assert [text.lstrip() for text in found] == expected
    assert expected != untrained
    assert len(set(expected)) > 2


@pytest.mark.slow
def test_tokens_that_were_added_to_a_sentencepiece_model_are_in_the_file(tmp_path: Path) -> None:
    """The converter takes them from tokenizer_config.json alone, where transformers no longer writes them."""
    script = find_converter(str(gguf_families.converter()))
    tokenizer = gguf_families.base(tmp_path / "base", "gemma2")
    assert ready_tokenizer(tmp_path / "base") == "<end_of_turn>"
    convert(script, tmp_path / "base", tmp_path / "base.gguf", "f32", "base")
    fields = GGUFReader(tmp_path / "base.gguf").fields
    found = fields["tokenizer.ggml.tokens"].contents()
    assert {token: found[number] for token, number in tokenizer.get_vocab().items()} == {
        t: t for t in tokenizer.get_vocab()
    }
    assert found[fields["tokenizer.ggml.eos_token_id"].contents()] == "<end_of_turn>"
