"""Activated LoRA. Greenewald et al., 2025, arXiv 2504.12397; what counts as an invocation as in PEFT.

Tokens before the invocation are those of the base, so that an answerer that keeps keys and values of a conversation can
use them for the base and for any number of such adapters. The last invocation of a row counts. A row without one is
answered by the base alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_lora import LoraType, lora_type
from lrft.methods.lora import LoraAdapter
from lrft.model.invocation import Invocation


@dataclass(frozen=True)
class Alora(Method):
    """A LoRA that acts on the tokens from an invocation on, such as the beginning of the assistant's turn."""

    name: ClassVar[str] = "alora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2504.12397"
    equation: ClassVar[str] = "W x + (alpha / r) B A x for tokens from the invocation on, W x before"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "PEFT LoRA with alora_invocation_tokens; not mergeable"
    evidence: ClassVar[str] = "logits, gradients and generated tokens compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "lora"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("scale",)
    may_not_move: ClassVar[tuple[str, ...]] = ("A", "B")
    peft_type: ClassVar[str] = "LORA"

    invocation: str = ""
    """The invocation as text, which the base's tokenizer makes tokens of; those are saved with the adapter."""
    invocation_tokens: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The invocation as token ids, instead."""

    @classmethod
    def in_peft(cls) -> LoraType:
        key = "alora_invocation_tokens"
        return lora_type(AloraAdapter, asks=key, options={"invocation_tokens": key}, conv1d=True)

    @property
    def whole_rows(self) -> bool:
        return True

    def options_with(self, tokenizer: Any) -> dict[str, Any]:
        if bool(self.invocation) == bool(self.invocation_tokens):
            said = "both name it" if self.invocation else "it has none"
            raise ValueError(f"alora acts from an invocation on: give invocation or invocation_tokens, {said}")
        if not self.invocation:
            return {"invocation_tokens": self.invocation_tokens}
        if tokenizer is None:
            raise ValueError("alora: invocation is text, and there is no tokenizer; give invocation_tokens")
        return {"invocation_tokens": tuple(tokenizer(self.invocation, add_special_tokens=False)["input_ids"])}

    def rows_advice(self, rows: Any) -> list[str]:
        found = [
            last_start(tokens, self.invocation_tokens) for i in range(len(rows)) for tokens, _ in rows.sequences(i)
        ]
        trained = [trained for i in range(len(rows)) for _, trained in rows.sequences(i)]
        missing = sum(start is None for start in found)
        if missing == len(found):
            raise ValueError(
                f"alora: no row of the training data has the invocation (token ids {list(self.invocation_tokens)}), so "
                f"that the adapter would act on none. lrft preview shows the rows' tokens"
            )
        idle = sum(int(which[:start].sum()) for start, which in zip(found, trained, strict=True))
        said = (
            [f"alora: {missing:,} of {len(found):,} rows lack the invocation: the base alone answers them"]
            if missing
            else []
        )
        if idle:
            every = sum(int(which.sum()) for which in trained)
            said.append(
                f"alora: {idle:,} of {every:,} trained tokens stand before the last invocation of their row: they "
                f"count in the loss and teach the adapter nothing"
            )
        return said

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        return Invocation(self.invocation_tokens)

    def build(self, site: Site) -> Adapter:
        return AloraAdapter(site)


class AloraAdapter(LoraAdapter):
    """A layer by itself, outside of a model, acts on all its inputs."""

    mergeable: ClassVar[bool] = False

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        y = base(x)
        thin = linear(self.cast(self.drop(x)), self.A)
        active = None if self.shared is None else self.shared.among(x)
        if active is not None:
            thin = thin * active
        return y + (self.site.scale * linear(thin, self.B)).to(y.dtype)

    def peft(self) -> None:
        return None


def last_start(tokens: np.ndarray, invocation: Sequence[int]) -> int | None:
    """Where the last invocation in `tokens` (n,) begins; None without one."""
    n = len(invocation)
    if len(tokens) < n:
        return None
    whole = (np.lib.stride_tricks.sliding_window_view(tokens, n) == np.array(invocation)).all(axis=1)
    return int(np.flatnonzero(whole)[-1]) if whole.any() else None
