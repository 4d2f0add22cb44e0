"""EDoRA. Nasiri, Garraghan, 2024, arXiv 2501.12067: DoRA's magnitude over LoRA-XS's core, nothing else.

The paper starts R at noise of 1e-5; zero trains as well and leaves the model as it was. The released code's own
default is a random A and B: here they are the weight's singular vectors, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lrft.methods.dora import Dora
from lrft.methods.lora_xs import LoraXs


@dataclass(frozen=True)
class Edora(LoraXs, Dora):
    """The same as [lora-xs, dora] with alpha: 16; row lengths beside a small matrix between singular vectors."""

    name: ClassVar[str] = "edora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2501.12067"
    equation: ClassVar[str] = "m V / |V|, V = W + (alpha / r) B R A, B = U, A = S V'"
    parameters: ClassVar[str] = "r^2 + d"
    exports: ClassVar[str] = "PEFT DoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "forward and merge compared with PEFT 0.21's DoRA"
    learning_rate: ClassVar[float] = 1e-3
    rate_source: ClassVar[str] = "the released scripts, 1e-4 to 5e-3"
    builds: ClassVar[bool] = True
    slots: ClassVar[tuple[str, ...]] = ("update", "magnitude")
    provides: ClassVar[tuple[str, ...]] = ("scale",)
    requires: ClassVar[tuple[str, ...]] = ()

    svd: Literal["randomized", "exact"] = "randomized"
    """randomized: within 2 % of the leading energy; exact: the full decomposition, slow for large layers."""

    def alpha(self, rank: int) -> float:
        return 16.0
