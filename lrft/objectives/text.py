"""Continued pre-training: the next-token loss of documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lrft.objectives.sft import Sft


@dataclass(frozen=True)
class Text(Sft):
    """Continued pre-training: the next-token loss of whole documents; those beyond max_length are split.

    Every token of a document is trained. Rows, batches and counts are those of sft.
    """

    name: ClassVar[str] = "text"
    perplexity: ClassVar[bool] = True
    weighs_rows: ClassVar[bool] = True
    defaults: ClassVar[dict[str, Any]] = {"data.too_long": "split"}
