"""BA-LoRA. Chang, Chang, Wu, arXiv 2408.04556: three terms beside the token loss, made of the logits.

    loss + l1 consistency + l2 diversity + l3 svd

Version 2 is that of the conference paper (2026) and its code, version 1 that of the first preprint (2024); their losses
and their coefficients differ. With Z (n, V) the logits before the n trained tokens of a micro-batch, Z0 the base's:

    version 2   consistency  tau^2 mean KL(softmax(Z0 / tau) || softmax(Z / tau))
                diversity    mean of -entropy of the softmax over the `top` largest logits of each row
                svd          -(s_1 + ... + s_k) / |Z|_F, s the singular values of Z
    version 1   consistency  mean KL(softmax(Z0) || softmax(Z));  diversity  mean of -entropy;  svd  -sum_k s / sum s

The released codes look at the logits one position late, behind the labels, and version 1 at prompts and padding as
well, dividing the consistency by the number of rows; its svd never ran. Here all terms see the logits that predict the
trained tokens and nothing else. By Cauchy-Schwarz version 2's svd term is smallest for k equal singular values. The
terms are means over a micro-batch: svd depends on its size by nature.

Where a head classifies whole texts, Z (n, D) are its logits, and the paper has other terms, without released code:

    consistency  version 2 as above;  version 1  mean (Z / |Z| - Z0 / |Z0|)^2, the rows divided by their lengths
    diversity    (1 / D) sum of C_ij^2 over i != j, C the covariance of the labels' logits over the rows
    svd          -(s_1 + ... + s_k) / (sum of all s), which for D <= k is a constant
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from lrft.adapters import svd
from lrft.adapters.adapter import Site
from lrft.adapters.gradients import FurtherPasses
from lrft.adapters.part import Outputs, Part, Run

# Coefficients of consistency, diversity and svd, and the number of singular values, by version.
COEFFICIENTS = {2: (0.025, 0.005, 0.005), 1: (1e-4, 3e-4, 1e-4)}
LEADING = {2: 10, 1: 3}
# The same where texts are classified.
OF_TEXTS = {2: (0.15, 0.03, 0.03), 1: (1e-4, 4e-4, 1e-4)}
LEADING_OF_TEXTS = {2: 5, 1: 3}
# Where the consistency's schedule ends, and when the others begin and how long they rise, as shares of the run.
LAST_CONSISTENCY, BEGIN, RISE = 0.1, 0.2, 0.05


@dataclass(frozen=True)
class BaLora(Part):
    """Keeps the answers near the base's, varied, and carried by few directions. The paper starts from pissa."""

    name: ClassVar[str] = "ba-lora"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2408.04556"
    equation: ClassVar[str] = "loss + l1 tau^2 KL(base || adapted) - l2 entropy - l3 (s_1 + ... + s_k) / |Z|"
    evidence: ClassVar[str] = (
        "loss terms and gradients compared with the formulas of both released codes, token positions corrected"
    )

    version: Literal[1, 2] = 2
    """2: the conference paper; 1: the first preprint."""
    consistency: Annotated[float, Field(ge=0)] | None = None
    """l1, weight of the distance from the base; null: 0.025 (version 1: 1e-4), of texts 0.15 (1e-4). 0 skips the base's
    forward pass."""
    diversity: Annotated[float, Field(ge=0)] | None = None
    """l2, weight of the entropy term; null: 0.005 (version 1: 3e-4), of texts 0.03 (4e-4)."""
    svd: Annotated[float, Field(ge=0)] | None = None
    """l3, weight of the leading singular values; null: 0.005 (version 1: 1e-4), of texts 0.03 (1e-4)."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """tau, temperature of version 2's consistency loss."""
    top: Annotated[int, Field(ge=0)] = 20
    """Logits per row used by version 2's diversity loss; 0: all."""
    leading: Annotated[int, Field(ge=1)] | None = None
    """k, leading singular values; null: 10 (version 1: 3), of texts 5 (3)."""
    schedule: bool = True
    """Version 2: consistency falls to a tenth by a cosine; the others wait for a fifth of the run, then rise."""
    adaptive: bool = False
    """Version 2: instead of the cosine, consistency between a tenth and all of l1, by how sure the base is."""

    def coefficients(self, of_texts: bool = False) -> tuple[float, float, float]:
        """(l1, l2, l3) before any schedule."""
        given, defaults = (self.consistency, self.diversity, self.svd), OF_TEXTS if of_texts else COEFFICIENTS
        l1, l2, l3 = (
            default if own is None else own for own, default in zip(given, defaults[self.version], strict=True)
        )
        return l1, l2, l3

    @property
    def further_passes(self) -> FurtherPasses:
        return FurtherPasses(base=1 if self.coefficients()[0] else 0)

    def output_loss(self, run: Run, outputs: Outputs) -> Tensor | None:
        l1, l2, l3 = self.coefficients(outputs.of_texts)
        rises = 1.0
        Z = outputs.logits
        Z0 = outputs.base_logits() if l1 else Z
        if self.version == 2:
            if self.schedule:
                rises = rising(run.step, run.total_steps)
            if self.adaptive:
                l1 *= LAST_CONSISTENCY + (1 - LAST_CONSISTENCY) * sureness(Z0, self.temperature)
            elif self.schedule:
                l1 *= falling(run.step, run.total_steps)
        terms = []
        if l1:
            terms.append(l1 * self.consistency_of(Z, Z0, outputs.of_texts))
        if l2 * rises and len(Z) > outputs.of_texts:
            terms.append(l2 * rises * self.diversity_of(Z, outputs.of_texts))
        if l3 * rises and min(Z.shape) > 1:
            terms.append(l3 * rises * self.svd_of(Z, outputs.of_texts))
        return torch.stack(terms).sum() if terms else None

    def consistency_of(self, Z: Tensor, Z0: Tensor, of_texts: bool) -> Tensor:
        if of_texts and self.version == 1:
            return (normalize(Z, dim=-1) - normalize(Z0, dim=-1)).square().mean()
        return consistency(Z, Z0, self.temperature if self.version == 2 else 1.0)

    def diversity_of(self, Z: Tensor, of_texts: bool) -> Tensor:
        return covariance(Z) if of_texts else negative_entropy(Z, self.top if self.version == 2 else 0)

    def svd_of(self, Z: Tensor, of_texts: bool) -> Tensor:
        k = self.leading or (LEADING_OF_TEXTS if of_texts else LEADING)[self.version]
        return leading_share(Z, k) if self.version == 2 and not of_texts else nuclear_share(Z, k)

    def advice(self, sites: Sequence[Site], offset_from_init: bool) -> list[str]:
        return [] if offset_from_init else ["ba-lora: the paper starts from pissa. Consider method: [pissa, ba-lora]."]


def falling(step: int, total: int) -> float:
    """From 1 to LAST_CONSISTENCY by half a cosine."""
    return LAST_CONSISTENCY + (1 - LAST_CONSISTENCY) * (1 + math.cos(math.pi * step / total)) / 2


def rising(step: int, total: int) -> float:
    """0 for a share BEGIN of the run, then linearly to 1 within a share RISE of it."""
    begin, length = math.floor(BEGIN * total), max(1, math.floor(RISE * total))
    return min(1.0, max(0.0, (step - begin) / length))


def consistency(Z: Tensor, Z0: Tensor, tau: float) -> Tensor:
    """tau^2 mean KL(softmax(Z0 / tau) || softmax(Z / tau)) over rows: towards the base, forward."""
    now, then = (Z / tau).log_softmax(-1), (Z0 / tau).log_softmax(-1)
    return tau**2 * (then.exp() * (then - now)).sum(-1).mean()


def negative_entropy(Z: Tensor, top: int) -> Tensor:
    """Mean over rows of -entropy of the softmax over the `top` largest logits, 0 for all. In [-log top, 0]."""
    chosen = Z.topk(min(top, Z.shape[1]), dim=-1).values if top else Z
    logs = chosen.log_softmax(-1)
    return (logs.exp() * logs).sum(-1).mean()


def covariance(Z: Tensor) -> Tensor:
    """Mean over columns of the squared covariances with the others, of at least two rows."""
    centred = Z - Z.mean(dim=0)
    C = centred.T @ centred / (len(Z) - 1)
    return (C.square().sum() - C.diagonal().square().sum()) / len(C)


def leading_share(Z: Tensor, k: int) -> Tensor:
    """-(s_1 + ... + s_k) / |Z|_F, 0 for no Z at all."""
    norm = Z.norm()
    return -leading_sum(Z, k) / norm if norm > 1e-8 else 0.0 * norm


def nuclear_share(Z: Tensor, k: int) -> Tensor:
    """-(s_1 + ... + s_k) / (sum of all s)."""
    everything = leading_sum(Z, min(Z.shape))
    return -leading_sum(Z, k) / everything if everything > 1e-8 else 0.0 * everything


def leading_sum(Z: Tensor, k: int) -> Tensor:
    """s_1 + ... + s_k, whose gradient is U_k V_k': without the ill-conditioned one of equal singular values."""
    k = min(k, *Z.shape)
    # Autocast would have the products in 16 bits, of which CUDA makes no decomposition.
    with torch.no_grad(), torch.autocast(Z.device.type, enabled=False):
        U, _, V = svd.leading(Z.detach(), k, iterations=2) if k < min(Z.shape) else svd.exact(Z.detach(), k)
        directions = U @ V.T
    return (Z * directions).sum()


def sureness(Z0: Tensor, tau: float) -> float:
    """1 - mean entropy of softmax(Z0 / tau) over log V: 1 when the base is sure of every token."""
    logs = (Z0 / tau).log_softmax(-1)
    entropy = -(logs.exp() * logs).sum(-1).mean().item()
    return 1 - min(1.0, max(0.0, entropy / math.log(Z0.shape[1])))
