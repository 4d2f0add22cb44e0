"""The models that are measured, as folders: python -m performance.models NAME FOLDER

Every folder has a tokenizer of words t0, t1, ..., one for each id, so that rows are the same ids for everybody.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from performance.gpu import layers_that_fit
from performance.processes import ROOT

SPECIAL = ("<unk>", "<s>", "</s>")
SMALL = LlamaConfig(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=8192,
)
TINY = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=172,
    num_hidden_layers=5,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=512,
)
SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)


def make(name: str, folder: Path) -> None:
    """A new folder with the model `name`. It appears under its name when it is whole."""
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    shapes = {"small": SMALL, "tiny": TINY}
    makers = {kind: partial(random_weights, config) for kind, config in shapes.items()}
    origin = (makers | {"smollm2": smollm2, "llama-8b": llama_8b})[name](beside)
    config = json.loads((beside / "config.json").read_text())
    word_tokenizer(config["vocab_size"]).save_pretrained(beside)
    (beside / "origin.json").write_text(json.dumps({"weights": origin, "config": config}))
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def smollm2(folder: Path) -> str:
    """The quickstart's model where it can be had, else random weights of its shape."""
    try:
        found = quickstart_model()
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"SmolLM2-135M cannot be had ({error}): random weights of its shape", file=sys.stderr)
        return random_weights(SMOLLM2, folder)
    shutil.copy(found / "config.json", folder / "config.json")
    (folder / "model.safetensors").symlink_to(found / "model.safetensors")
    return "SmolLM2-135M-Instruct"


def quickstart_model() -> Path:
    """The folder that the quickstart's .gguf file is converted into. Raises CalledProcessError."""
    from lrft.model.hub import find_model

    script = [sys.executable, str(ROOT / "recipes" / "model.py"), "SmolLM2-135M-Instruct"]
    asked = subprocess.run(script, capture_output=True, text=True, check=True)
    return find_model(asked.stdout.strip())


def llama_8b(folder: Path) -> str:
    """As many layers of an 8B Llama as this GPU holds with room for training."""
    memory = torch.cuda.get_device_properties(0).total_memory
    config = LlamaConfig(**{**LLAMA_8B.to_diff_dict(), "num_hidden_layers": layers_that_fit(LLAMA_8B, memory)})
    return random_weights(config, folder, torch.bfloat16)


def random_weights(config: Any, folder: Path, dtype: torch.dtype = torch.float32) -> str:
    """A model of this shape from a fixed seed, saved as one file."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder, max_shard_size="1TB")
    return "random weights"


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word for each id: "t17" is 17. No start token, </s> ends a row."""
    words = {word: i for i, word in enumerate(SPECIAL)}
    words |= {f"t{i}": i for i in range(len(SPECIAL), vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>", model_max_length=8192
    )


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
