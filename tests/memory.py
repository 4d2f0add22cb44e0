"""Peak memory of a piece of code in a process of its own, and a model large enough that it shows."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

import lrft
from lrft.adapters.storage import save_adapter
from lrft.model.load import load_skeleton
from lrft.model.weights import fingerprint

# The peak is set back first: a new process inherits that of its parent. RLIMIT_DATA counts what a process asks for,
# used or not, and not the files that it maps.
CHILD = """
import json, resource, sys
import torch, transformers
from transformers import LlamaForCausalLM
from lrft.export.merge import merge_adapter
from lrft.inspection.inspect import inspect_adapter
def memory(word):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(word + ":")))
open("/proc/self/clear_refs", "w").write("5")
before, allowed = memory("VmRSS"), int(sys.argv[3])
if allowed:
    most = memory("VmData") + allowed
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
DO
print(json.dumps({"used": memory("VmHWM") - before}))
"""


def run(
    do: str, first: Path, second: Path, *, allowed: int = 0, cache: str = "cache"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD.replace("DO", do), str(first), str(second), str(allowed)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(lrft.__file__).parents[1]),
            "LRFT_CACHE": str(second.with_name(cache)),
            "MALLOC_MMAP_THRESHOLD_": "1000000",  # else what glibc keeps for later differs from run to run
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


def used(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, int] = json.loads(done.stdout)
    return found["used"]


class Synthetic:
    """A sharded bfloat16 Llama of random numbers, written without building it, and an adapter on it."""

    def __init__(self, root: Path, layers: int, width: int, inner: int) -> None:

        self.base, self.out = root / "base", root / "out"
        config = LlamaConfig(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=8, vocab_size=1000
        )
        config.save_pretrained(self.base)
        ends = {"model.embed_tokens.weight": (1000, width), "lm_head.weight": (1000, width)}
        shapes: dict[str, tuple[int, ...]] = {**ends, "model.norm.weight": (width,)}
        for i in range(layers):
            block = f"model.layers.{i}"
            shapes |= {f"{block}.self_attn.{w}_proj.weight": (width, width) for w in "qkvo"}
            shapes |= {f"{block}.mlp.{w}_proj.weight": (inner, width) for w in ("gate", "up")}
            shapes |= {f"{block}.mlp.down_proj.weight": (width, inner)}
            shapes |= {f"{block}.{w}_layernorm.weight": (width,) for w in ("input", "post_attention")}
        numbers = (torch.randn(max(map(math.prod, shapes.values()))) * 0.02).bfloat16()
        names = list(shapes)
        groups = [names[at : at + 9] for at in range(0, len(names), 9)]
        index: dict[str, str] = {}
        for number, group in enumerate(groups):
            shard = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
            made = {n: numbers[: math.prod(shapes[n])].reshape(shapes[n]).clone() for n in group}
            save_file(made, self.base / shard, {"format": "pt"})
            os.utime(self.base / shard, (0, 0))  # fingerprints are remembered of files that are not of this moment
            index |= dict.fromkeys(group, shard)
        self.size = sum(2 * math.prod(shape) for shape in shapes.values())
        self.largest = max(2 * math.prod(shape) for shape in shapes.values())
        weights = {"metadata": {"total_size": self.size}, "weight_map": index}
        (self.base / "model.safetensors.index.json").write_text(json.dumps(weights))

    def adapter(self, words: str, **more: Any) -> Path:
        folder = self.base.with_name(f"adapter-{words}")
        folder.mkdir()
        skeleton = load_skeleton(self.base).to_empty(device="cpu").bfloat16()
        attached = lrft.attach(skeleton, {"method": words, "rank": 8, **more})
        tiny.disturb(list(attached.trained().values()), size=0.01)
        save_adapter(attached, folder, base={"name": str(self.base), "fingerprint": fingerprint(self.base)})
        return folder
