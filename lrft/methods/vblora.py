"""VB-LoRA, vectors of A and B mixed from one bank. Li et al., 2024, arXiv 2405.15179; shapes and first values as in
PEFT.

A and B are cut into vectors of length b. Each is a mixture of the few vectors of a bank, common to all layers, for
which its logits are largest:

    vector = sum over the top of softmax(top logits)_j bank_j
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Vblora(Method):
    """A and B of all layers are mixed from one small bank of vectors; what is stored are the bank and few weights."""

    name: ClassVar[str] = "vblora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2405.15179"
    equation: ClassVar[str] = "W + B A, whose parts of length b are mixtures of a few vectors of a common bank"
    parameters: ClassVar[str] = "r (d + k) h / b, and h b once"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, PEFT VBLORA, or merged model"
    evidence: ClassVar[str] = "forward, gradients, merge and bounds of the first values compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 1e-2
    rate_source: ClassVar[str] = "PEFT's documentation"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    init_changes_output: ClassVar[bool] = True

    num_vectors: Annotated[int, Field(ge=1)] = 256
    """h, vectors of the bank."""
    vector_length: Annotated[int, Field(ge=1)] = 256
    """b, which must divide the inputs and outputs of every layer."""
    topk: Annotated[int, Field(ge=1)] = 2
    """Vectors in a mixture."""
    init_vector_bank_bound: Annotated[float, Field(gt=0)] = 0.02
    """The bank starts uniform within it: the update is no zero at the start, but small."""
    init_logits_std: Annotated[float, Field(gt=0)] = 0.1
    """Standard deviation of the first logits."""
    bank_ratio: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of the bank relative to that of the logits."""
    peft_type: ClassVar[str] = "VBLORA"

    @classmethod
    def in_peft(cls) -> PeftType:
        return PeftType(
            "VBLORA",
            VbloraAdapter,
            {"logits_A": Named("vblora_logits_A", "rih"), "logits_B": Named("vblora_logits_B", "jrh")},
            options={"num_vectors": "num_vectors", "vector_length": "vector_length", "topk": "topk"},
            fixed={"save_only_topk_weights": (False,)},
            training=("init_vector_bank_bound", "init_logits_std"),
            dropout="vblora_dropout",
            conv1d=True,
            shared={"bank": Named("vblora_vector_bank", "hb")},
        )

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        return Bank(self.num_vectors, self.vector_length, self.init_vector_bank_bound, sites[0].dtype)

    def build(self, site: Site) -> Delta:
        if site.d % self.vector_length or site.k % self.vector_length:
            raise ValueError(
                f"vblora's vectors of length {self.vector_length} do not divide {site.d} outputs and {site.k} inputs: "
                f"set vector_length to a divisor of both"
            )
        if self.topk > self.num_vectors:
            raise ValueError(f"vblora mixes {self.topk} of {self.num_vectors} vectors: lower topk")
        return VbloraAdapter(site, self)

    def lr_factors(self) -> dict[str, float]:
        return {"bank": self.bank_ratio}


class Bank(nn.Module):
    """bank (h, b) uniform within the bound."""

    def __init__(self, count: int, length: int, bound: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.bank = nn.Parameter(torch.empty(count, length, dtype=dtype).uniform_(-bound, bound))


class VbloraAdapter(Delta):
    """logits_A (r, k / b, h) and logits_B (d / b, r, h), normal."""

    def __init__(self, site: Site, method: Vblora) -> None:
        super().__init__(site)
        self.topk, length, std = method.topk, method.vector_length, method.init_logits_std
        A = torch.randn(site.rank, site.k // length, method.num_vectors, dtype=site.dtype)
        B = torch.randn(site.d // length, site.rank, method.num_vectors, dtype=site.dtype)
        self.logits_A, self.logits_B = nn.Parameter(std * A), nn.Parameter(std * B)

    def mixed(self, logits: Tensor) -> Tensor:
        """(..., b) from logits (..., h)."""
        top, places = logits.topk(self.topk, dim=-1)
        return torch.einsum("...t,...tb->...b", top.softmax(-1), self.shared.bank[places])

    def factors(self) -> Factors:
        A = self.mixed(self.logits_A).flatten(1)
        B = self.mixed(self.logits_B).transpose(1, 2).flatten(0, 1)
        return Factors(B, A, 1.0)

    def delta_weight(self) -> Tensor:
        B, A, _ = self.factors()
        return B @ A

    def delta(self, x: Tensor) -> Tensor:
        B, A, _ = self.factors()
        return nn.functional.linear(nn.functional.linear(x, A), B)
