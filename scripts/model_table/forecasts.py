"""Peak memory of a run: what `lrft plan` forecasts and what the run takes, of models large enough to tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from model_table.families import FAMILIES, IDS
from model_table.making import make_tokenizer
from model_table.others import class_of

# Activations are to be more than the process itself, whose own memory is known only roughly.
LARGER = {
    **{"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 4096},
    **IDS,
}
LATENT = {
    **{"q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    **{"num_key_value_heads": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 704},
    **{"n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
}
SIZES: dict[str, dict[str, Any]] = {
    "Llama 2, 3": LARGER,
    "Qwen 3": LARGER,
    "Phi 3, 4": LARGER,
    "Mixtral": LARGER | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 704},
    "GPT-2": {"vocab_size": 8192, "n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": 4096, **IDS},
    "OPT": LARGER | {"ffn_dim": 2048, "word_embed_proj_dim": 512},
    "BLOOM": {"vocab_size": 8192, "hidden_size": 512, "n_layer": 4, "n_head": 8, **IDS},
    "Falcon": {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, **IDS},
    "Gemma 2": LARGER | {"sliding_window": 256, "query_pre_attn_scalar": 64},
    "DeepSeek V3": LARGER | LATENT | {"head_dim": 32},
}
RECIPE = """\
model: {folder}
adapter: {{rank: 8}}
data: {{train: {rows}, validation: none, cache: false, max_length: 1024, too_long: truncate}}
training:
  {{max_steps: 2, global_batch_size: 8, micro_batch_size: 8, warmup_steps: 0, precision: fp32}}
evaluation: {{every: none, at_start: false, samples: 0}}
checkpoint: {{every: none}}
output_dir: {out}
"""


def measure(family: str, place: Path) -> dict[str, int]:
    """Bytes that `lrft plan` forecasts for one device, and the peak of the run, each in a fresh process."""
    kind = FAMILIES[family][0]
    config = AutoConfig.for_model(kind, **SIZES[family])
    torch.manual_seed(0)
    model = class_of(kind).from_config(config)
    folder, out, recipe = place / "base", place / "run", place / "recipe.yaml"
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "lily and tom " * 120}]}
    (place / "rows.jsonl").write_text((json.dumps(row) + "\n") * 8)
    recipe.write_text(RECIPE.format(folder=folder, rows=place / "rows.jsonl", out=out))
    planned = json.loads(lrft("plan", str(recipe), "--json"))["memory"]["one device"]["total"]
    lrft("train", str(recipe), "--fresh")
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "planned": round(planned),
        "measured": round(max(json.loads(line)["memory_gb"] for line in lines) * 1e9),
    }


def lrft(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lrft", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"lrft {' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout


def processor() -> str:
    """What /proc/cpuinfo calls the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def section(found: dict[str, Any]) -> str:
    """The part of the page. found: what docs/models.json holds under `forecasts`."""
    lines: Sequence[str] = [
        f"| {family} | {one['parameters'] / 1e6:.0f} M | {one['planned'] / 1e9:.2f} | {one['measured'] / 1e9:.2f} | "
        f"{one['planned'] / one['measured'] - 1:+.0%} |"
        for family, one in found["families"].items()
    ]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"""\
## Memory forecasts

The peak memory that `lrft plan` forecasts and the one that the run then took: LoRA of rank 8 on `all-linear`, 8 rows
of up to 1,024 tokens in one micro-batch, two steps in float32, one thread; models of these families with random weights
(seed 0), on a CPU ({found["processor"]}), {versions}. `scripts/models --forecasts` makes
this table. The tests hold a larger Llama to 15 %, and what a pass keeps to 3 % for tiny models of six families (Llama,
Mistral, GPT-2, DeepSeek V3, Gemma 2, BLOOM). A run's peak differs by some percent from one time to the next.

Where a CPU cannot fuse attention, whole matrices of tokens by tokens are kept: with dropout in the attention (GPT-2),
with values of another width than the keys (DeepSeek V3), and with attention that is not PyTorch's (Gemma 2, whose rows
are then one long row: `data.packing: false` takes a part of it). The forecast of Falcon takes its rows to lie end to
end; before the first step the run finds that they leak, and pads them.

| family | parameters | forecast GB | measured GB | difference |
| --- | --- | --- | --- | --- |
""" + "".join(f"{line}\n" for line in lines)
