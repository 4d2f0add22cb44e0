"""What a quantised base weighs, costs and says: python -m performance.quantized MODEL [TOKENS]"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TEXT = (
    "The river was high that spring, and the ferry could not cross until the third of April. To make the dough, mix "
    "the flour with water and a little salt, then let it rest for an hour. "
)
STEPS = 3


def weight_bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def step_seconds(model: Any, ids: Tensor) -> float:
    """CPU seconds of one forward and backward pass with LoRA of rank 16 on every layer: the best of a few."""
    import lrft

    lrft.attach(model.train(), {"method": "lora"})
    found = []
    for _ in range(STEPS):
        began = time.process_time()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    from lrft.model.load import load_model, load_tokenizer

    folder, count = Path(sys.argv[1]), int((*sys.argv, "64")[2])
    ids = torch.tensor(load_tokenizer(folder)(TEXT * (1 + count // 32))["input_ids"])[None, :count]
    original: Tensor | None = None
    print(f"{count} tokens, {torch.get_num_threads()} thread, float32")
    print("base    MB  load s  step s   loss   largest and mean logit difference, same first token")
    for kind in ("none", "int8", "fp8", "nf4", "fp4"):
        began = time.process_time()
        model = load_model(folder, dtype=torch.float32, quantization=kind)
        load, size = time.process_time() - began, weight_bytes(model) / 1e6
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        original = logits if original is None else original
        loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).item()
        off = (logits - original).abs()
        same = (logits.argmax(-1) == original.argmax(-1)).float().mean().item()
        print(
            f"{kind:<5}{size:>5.0f}{load:>8.2f}{step_seconds(model, ids):>8.2f}{loss:>7.3f}"
            f"{off.max().item():>8.2f} of {original.abs().max().item():.0f}{off.mean().item():>8.3f}{same:>8.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
