"""How far folders of weights are apart: python -m performance.weights_apart A B BASE

Prints the largest difference between A and B in any weight, and that between A and BASE.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Raises ValueError when one has tensors that the other lacks; a head tied to the embedding may be absent."""
    if odd := (a.keys() ^ b.keys()) - {"lm_head.weight"}:
        raise ValueError(f"tensors on one side only: {sorted(odd)[:3]}")
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a.keys() & b.keys())


def main() -> None:
    a, b, base = (load_file(Path(folder) / "model.safetensors") for folder in sys.argv[1:])
    print(f"{apart(a, b):.1e}", f"{apart(a, base):.1e}")


if __name__ == "__main__":
    main()
