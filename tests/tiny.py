"""Tiny models made on the spot: real architectures of transformers with random weights."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import lrft
from lrft.adapters.adapter import Delta
from lrft.adapters.attached import Attached
from lrft.adapters.storage import save_adapter

VOCABULARY = 97
WIDTH = 24


def llama(*, tied: bool = False, layers: int = 2, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=44,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )


def gpt2() -> PreTrainedModel:
    """Conv1D layers, biases, learned positions, tied embeddings."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            n_positions=256,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )


MODELS = {"llama": llama, "llama-tied": lambda: llama(tied=True), "gpt2": gpt2}


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """A model whose biases and norms are not the trivial ones, in evaluation mode."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "embed" not in parameter_name and "wte" not in parameter_name:
                parameter.mul_(4.0)  # far enough from linear that a wrong weight shows
    return model.eval()


def tokens(rows: int = 2, length: int = 11, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def disturb(parameters: list[nn.Parameter], seed: int = 2, size: float = 0.2) -> None:
    """Put trained tensors somewhere that no start is."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def layer(words: Any, d: int, k: int, rank: int = 4, **more: Any) -> tuple[Any, Any]:
    """(model of one float64 layer named "0", handle) of an adapter section with `more` keys."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).double()
    return model, lrft.attach(model, {"method": words, "rank": rank, **more})


def same_function(model: Any, attached: Any, dW: torch.Tensor) -> bool:
    """Whether a model of `layer` is W + dW (d, k): its weight by definition, its output, and all gradients of it."""
    W, adapter = model[0].base.weight, attached.modules["0"]
    x = torch.randn(5, W.shape[1], dtype=W.dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = x @ (W + dW).T + model[0].base.bias
    wanted = [x, *attached.trained().values()]
    found = torch.autograd.grad(model(x).square().sum(), wanted)
    right = torch.autograd.grad(expected.square().sum(), wanted)
    close = [(model(x), expected), (adapter.weight(W), W + dW), *zip(found, right, strict=True)]
    if isinstance(adapter, Delta):  # the way of half-precision and quantised bases
        close.append((adapter.delta(x), x @ dW.T))
    return all(torch.allclose(one, other, rtol=1e-9, atol=1e-9) for one, other in close)


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@cache
def loras() -> str:
    """A folder with two LoRAs in PEFT's format that fit every model here, of rank 3; gone with the process."""
    folder = Path(tempfile.mkdtemp(prefix="loras-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(5)
    shapes = {
        name: (module.weight.T if name.startswith("transformer") else module.weight).shape
        for make_one in (llama, gpt2)
        for name, module in make_one().named_modules()
        if name.count(".") > 2 and hasattr(module, "weight") and module.weight.ndim == 2
    }
    for word in ("one", "two"):
        tensors = {}
        for name, (d, k) in shapes.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(3, k, generator=generator)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(d, 3, generator=generator)
        (folder / word).mkdir()
        save_file(tensors, folder / word / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "base_model_name_or_path": "tiny", "r": 3, "lora_alpha": 6}
        (folder / word / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


@cache
def searched() -> str:
    """A folder with a search of AutoLoRA that covers every model here, of ranks 4 and, in one layer each, 6; gone with
    the process."""
    folder = Path(tempfile.mkdtemp(prefix="searched-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    overrides = {"llama": "*.1.mlp.down_proj", "gpt2": "*.1.mlp.c_fc"}
    one, other = (
        lrft.attach(make(name), {"method": "autolora", "rank": 4, "overrides": {pattern: {"rank": 6}}})
        for name, pattern in overrides.items()
    )
    both = Attached(one.model, {**one.modules, **other.modules}, one.methods, [*one.sites, *other.sites], None)
    save_adapter(both, folder, base={"name": "tiny", "revision": None, "fingerprint": ""})
    return str(folder)
