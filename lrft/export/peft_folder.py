"""The adapter as a folder of stock PEFT, without lrft's own files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lrft.adapters.peft_export import PEFT_TENSORS
from lrft.adapters.storage import SavedAdapter
from lrft.errors import UsageError
from lrft.export.base import Exporter
from lrft.export.merge import goes_along
from lrft.utils import files

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class PeftFolder(Exporter):
    """The adapter as stock PEFT's LoRA, with its tokenizer; exact, so only where PEFT can represent the method."""

    name: ClassVar[str] = "peft"
    takes: ClassVar[Literal["peft"]] = "peft"

    def export(self, saved: SavedAdapter, base: Path, out: Path) -> list[str]:
        if not (saved.folder / PEFT_TENSORS).is_file():
            names = ", ".join(entry["name"] for entry in saved.info["methods"])
            raise UsageError(f"{names}: stock PEFT's LoRA cannot represent this adapter", "Use --to merged instead.")
        if out.exists():
            raise UsageError(f"{out} exists", "Choose another folder with -o.")
        names_to_copy = {CONFIG, PEFT_TENSORS}
        names_to_copy |= {p.name for p in saved.folder.iterdir() if goes_along(p) and p.name != "lrft.json"}
        with files.room_for(out, (saved.folder / PEFT_TENSORS).stat().st_size), files.scratch_for(out) as scratch:
            for name in sorted(names_to_copy):
                shutil.copyfile(saved.folder / name, scratch / name)
                files.sync(scratch / name)
            if saved.head is not None:
                saved.head.save(scratch)
            scratch.rename(out)
        files.sync(out.parent)
        return [f"{len(saved.sites)} modules as PEFT LoRA", f"base {base.name}"]
