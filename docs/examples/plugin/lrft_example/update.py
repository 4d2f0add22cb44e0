"""An exporter: the change of each weight, as one file of safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lrft.adapters.adapter import Delta
from lrft.adapters.storage import SavedAdapter
from lrft.errors import UsageError
from lrft.export.base import Exporter
from lrft.utils import files


@dataclass(frozen=True)
class Update(Exporter):
    """update.safetensors: what is added to each weight, (outputs, inputs)."""

    name: ClassVar[str] = "update"

    def export(self, saved: SavedAdapter, base: Path, out: Path) -> list[str]:
        adapters = {site.name: saved.build(site) for site in saved.sites}
        added = {name: one.delta_weight().detach() for name, one in adapters.items() if isinstance(one, Delta)}
        if len(added) < len(adapters):
            raise UsageError(f"{saved.folder}: this adapter does more than add to weights", "Export --to merged.")
        out.mkdir(parents=True)
        files.write_tensors(out / "update.safetensors", added)
        return [f"{len(added)} updates"]
