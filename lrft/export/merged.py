"""The merged folder: a plain model of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lrft.adapters.storage import SavedAdapter
from lrft.export.base import Exporter
from lrft.export.merge import merge_adapter


@dataclass(frozen=True)
class Merged(Exporter):
    """Base and adapter in one model folder, which any tool that reads transformers' folders loads."""

    name: ClassVar[str] = "merged"
    takes: ClassVar[Literal["merged"]] = "merged"
    writes_model: ClassVar[bool] = True

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Stored dtype; none keeps each tensor's dtype."""

    def export(self, saved: SavedAdapter, base: Path, out: Path) -> list[str]:
        done = merge_adapter(saved.folder, out, base_model=str(base), dtype=self.dtype)
        return [f"{done.sites} modules merged", f"{done.lost_share:.2%} of the update lost to rounding"]
