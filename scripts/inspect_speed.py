"""CPU seconds that `lrft inspect` takes for one large layer, beside two full decompositions, on one core.

    python scripts/inspect_speed.py 4096 11008

The weight is random, with 128 large directions over it; the update is a LoRA of rank 16 whose largest singular value is
the given share of the weight's. Prints both times and how far the figures differ.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lrft.inspection import intruders, krylov, spectra
from lrft.inspection.inspect import KEPT


def layer(d: int, k: int, size: float) -> tuple[Tensor, Tensor]:
    """(weight, adapted weight), both (d, k) in float64 with float32's digits."""
    torch.manual_seed(0)
    W = torch.randn(d, k)
    large = 4 * min(d, k) ** 0.5 * torch.arange(1, 129) ** -0.5
    W += (torch.linalg.qr(torch.randn(d, 128)).Q * large) @ torch.linalg.qr(torch.randn(k, 128)).Q.T
    B, A = torch.linalg.qr(torch.randn(d, 16)).Q, torch.linalg.qr(torch.randn(k, 16)).Q.T
    return W.double(), (W + size * large[0] * B @ A).double()


def timed(work: Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[float, tuple[Tensor, ...]]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("d", type=int, help="outputs")
    parser.add_argument("k", type=int, help="inputs")
    parser.add_argument("--size", type=float, default=0.1, help="of the update, over the weight's (spectral norms)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    W, changed = layer(asked.d, asked.k, asked.size)

    def quick() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        before = krylov.leading(W, KEPT, 0) or spectra.decomposed(W)
        after = krylov.leading(changed, KEPT, spectra.TOP) or spectra.decomposed(changed)
        bounds = intruders.nearest(W, before, after.vectors[:, : spectra.TOP], spectra.EPSILON)
        return before.values[:KEPT], after.values[:KEPT], *bounds

    def full() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        before, after = spectra.decomposed(W), spectra.decomposed(changed)
        cosines = spectra.cosines(before.vectors, after.vectors[:, : spectra.TOP])
        return before.values[:KEPT], after.values[:KEPT], cosines, cosines

    short, (base, merged, low, high) = timed(quick)
    long, (base_full, merged_full, cosines, _) = timed(full)
    apart = max(((one - other) / other).abs().max().item() for one, other in ((base, base_full), (merged, merged_full)))
    counts = [int((found < spectra.EPSILON).sum()) for found in (high, cosines)]
    within = bool((low <= cosines + 1e-6).all() and (cosines <= high + 1e-6).all())
    print(f"{asked.d} x {asked.k}, update {asked.size:g}: {short:.1f} s, full decompositions {long:.1f} s")
    print(
        f"ratio {long / short:.1f}; values differ by {apart:.1g}; intruders {counts}; cosines inside bounds: {within}"
    )


if __name__ == "__main__":
    main()
