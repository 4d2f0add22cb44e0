"""LoRA-GA. Wang, Yu, Li, 2024, arXiv 2407.05000, section 3: direction ArB2r and scale "stable" of the released code.

PEFT 0.21 differs: it multiplies B by the gradient's singular values and A by no factor, so that its start depends on
the size of the loss and its first step is not along the gradient's leading part. Here it is the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.core import spectrum
from lrft.core.compose import seed_of
from lrft.core.look import Look
from lrft.core.part import Part, Seen


@dataclass(frozen=True)
class LoraGa(Part):
    """Starts A and B from the gradient's leading directions, so that the first step is nearly full fine-tuning's.

    The update is counted from that start. The paper has the factor of rslora beside it: [lora-ga, rslora].
    """

    name: ClassVar[str] = "lora-ga"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2407.05000"
    equation: ClassVar[str] = "G = U S V', c = d^(1/4) / sqrt(gamma), A0 = c V[:, :r]', B0 = c U[:, r:2r]"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the untouched base, or merged"
    evidence: ClassVar[str] = "index formulas of the released code; directions against PEFT 0.21"
    fills: ClassVar[tuple[str, ...]] = ("start",)
    needs: ClassVar[tuple[str, ...]] = ("pair", "dropout=0")
    anchored: ClassVar[bool] = True

    rows: Annotated[int, Field(ge=1)] = 8
    """Rows of the training data whose gradient is looked at. 8 as in the released recipe."""
    rounds: Annotated[int, Field(ge=0)] = 1
    """Power rounds that sharpen the directions; each passes twice over these rows. 1 is nearly the decomposition."""
    gamma: Annotated[float, Field(gt=0)] = 16.0
    """The start is as large as 1 / gamma: more is smaller. 16 as in the paper."""

    def observe(self, look: Look) -> Seen:
        found = gradient_triplets(look, self.rows, self.rounds, seed_of(look.seed, self.name), times=2)
        return {name: {"U": U, "V": V} for name, (U, _, V) in found.items()}

    def start_from(self, adapter: Any, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        r, most = adapter.site.rank, min(W0.shape)
        if 2 * r > most:
            raise ValueError(
                f"rank {r} takes {2 * r} directions of the gradient, which has {most}: at most {most // 2}"
            )
        size = len(W0) ** 0.25 / math.sqrt(self.gamma)
        adapter.A.copy_(size * seen["V"][:, :r].T)
        adapter.B.copy_(size * seen["U"][:, r : 2 * r])


def gradient_triplets(look: Look, rows: int, rounds: int, seed: int, *, times: int) -> dict[str, spectrum.Triplets]:
    """By site, nearly the `times` r leading singular triplets of the gradient of the mean token loss of `rows` rows.

    The gradient itself is never made: a basis of 4r vectors is multiplied with it from both sides, 2 (1 + rounds)
    passes over the rows in all. Exact where the gradient's rank is 4r or less.
    """
    probes = {}
    for site in look.sites:
        generator = torch.Generator().manual_seed(seed_of(seed, site.name))
        drawn = torch.randn(site.k, min(4 * site.rank, site.d, site.k), dtype=site.dtype, generator=generator)
        probes[site.name] = drawn.to(next(look.model.get_submodule(site.name).parameters()).device)
    # The products are sums over all processes, the same bits on each, and so are the bases made of them.
    for _ in range(1 + rounds):
        columns = {name: torch.linalg.qr(made).Q for name, made in look.right_products(rows, probes).items()}
        images = look.left_products(rows, columns)
        probes = {name: torch.linalg.qr(image).Q for name, image in images.items()}
    found = {}
    for site in look.sites:
        basis, image = columns[site.name], images[site.name].T
        U, S, V = spectrum.largest(image, min(times * site.rank, len(image)))
        U = basis @ U
        # A and B are of different triplets: the sign of each decides on a run. The largest of u is positive.
        sign = U.gather(0, U.abs().argmax(0, keepdim=True)).sign()
        found[site.name] = (U * sign, S, V * sign)
    return found
