"""QA-LoRA. Xu et al., 2023, arXiv 2309.14717, section 3.3: A sees the sums of groups of inputs, and is as narrow.

    W + s c B (A x 1'),    A (r, k / g), each column for g inputs,    c = k / g^2

So the update of a group of inputs is one number for each output, as a quantised weight's zero point is. The constant c
is PEFT's, whose pooling is a mean times the number of groups. Which layers PEFT adapts so, and not as a LoRA, are those
of GPTQ alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_lora import LoraType, lora_type
from lrft.adapters.peft_type import Named


@dataclass(frozen=True)
class Qalora(Method):
    """A LoRA whose update is constant over groups of inputs, as zero points of a quantised weight are."""

    name: ClassVar[str] = "qalora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2309.14717"
    equation: ClassVar[str] = "W + (alpha / r) (k / g^2) B (A x 1_g')"
    parameters: ClassVar[str] = "r (d + k / g)"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "forward compared with PEFT 0.21's for GPTQ layers"
    learning_rate: ClassVar[float] = 2e-5
    rate_source: ClassVar[str] = "arXiv 2309.14717, LLaMA 7B and 13B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")
    peft_type: ClassVar[str] = "LORA"

    group_size: Annotated[int, Field(ge=1)] = 16
    """g, which divides the inputs of each layer. PEFT's default; the paper's groups of quantisation have 32."""

    @classmethod
    def in_peft(cls) -> LoraType:
        tensors = {"A": Named("lora_A.weight", "rg"), "B": Named("lora_B.weight", "dr")}
        return lora_type(QaloraAdapter, asks="use_qalora", tensors=tensors, options={"group_size": "qalora_group_size"})

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        return QaloraAdapter(site, self.group_size)


class QaloraAdapter(Delta):
    """A (r, k / g) as LoRA's, B (d, r) zero."""

    def __init__(self, site: Site, group: int) -> None:
        super().__init__(site)
        if site.k % group:
            raise ValueError(f"qalora: {site.k} inputs are not divisible by group_size {group}")
        self.group = group
        self.A = nn.Parameter(torch.empty(site.rank, site.k // group, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    @property
    def factor(self) -> float:
        return self.site.scale * self.site.k / self.group**2

    def delta_weight(self) -> Tensor:
        return self.factor * (self.B @ self.A).repeat_interleave(self.group, dim=1)

    def delta(self, x: Tensor) -> Tensor:
        sums = x.unflatten(-1, (-1, self.group)).sum(dim=-1)
        return self.factor * linear(linear(sums, self.A), self.B)

    def factors(self) -> Factors:
        return Factors(self.B, self.A.repeat_interleave(self.group, dim=1), self.factor)
