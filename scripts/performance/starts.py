"""PiSSA's two decompositions: python -m performance.starts OUT.json ROUNDS MODEL RANK"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

LAYER = "model.layers.{}."
WAYS = ("randomized", "exact")


def layers(folder: Path) -> dict[str, Tensor]:
    """One weight of each shape, from the middle of the model."""
    found: dict[tuple[int, ...], tuple[str, Tensor]] = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        count = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
        middle = LAYER.format(count // 2)
        for name in sorted(file.keys()):
            shape = tuple(file.get_slice(name).get_shape())
            if name.startswith(middle) and len(shape) == 2 and shape not in found:
                found[shape] = (name.removeprefix(middle), file.get_tensor(name).float())
    return dict(found.values())


@torch.no_grad()
def energy(B: Tensor, W: Tensor) -> float:
    """Share of W's squared norm in the space of the columns of B."""
    U, _ = torch.linalg.qr(B)
    return ((U.T @ W).square().sum() / W.square().sum()).item()


def compare(W: Tensor, rank: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of both ways, by turns, and the captured energy."""
    from lrft.adapters.adapter import Site
    from lrft.methods.lora import LoraAdapter
    from lrft.methods.pissa import Pissa

    adapter = LoraAdapter(Site("layer", *W.shape, rank))
    found: dict[str, Any] = {"shape": list(W.shape), **{way: [] for way in WAYS}, "energy": {}}
    for _ in range(rounds):
        for way in WAYS:
            torch.manual_seed(0)
            began = time.process_time()
            with torch.no_grad():
                Pissa(svd=way).initialize(adapter, W)
            found[way].append(time.process_time() - began)
            found["energy"][way] = energy(adapter.B, W)
    return found


def main() -> None:
    out, rounds, model, rank = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    out.write_text(json.dumps({name: compare(W, rank, rounds) for name, W in layers(model).items()}))


if __name__ == "__main__":
    main()
