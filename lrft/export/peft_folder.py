"""The adapter as a folder of stock PEFT, without lrft's own files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from lrft.adapters import peft_export
from lrft.adapters.attached import Attached
from lrft.adapters.peft_export import PEFT_TENSORS
from lrft.adapters.storage import SavedAdapter
from lrft.adapters.updates import words
from lrft.errors import UsageError
from lrft.export.base import Exporter
from lrft.export.merge import goes_along
from lrft.export.merge_places import names_in, stored_weight
from lrft.model.load import load_skeleton
from lrft.model.stored import Stored
from lrft.model.weights import weight_files
from lrft.utils import files

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class PeftFolder(Exporter):
    """The adapter as a folder of stock PEFT, with its tokenizer; exact, so only where PEFT can represent the method."""

    name: ClassVar[str] = "peft"
    takes: ClassVar[Literal["peft"]] = "peft"

    own_type: bool = False
    """PEFT's own type of the method (LOHA, VERA, MISS, ...) even where a LoRA of PEFT computes the same."""

    def export(self, saved: SavedAdapter, base: Path, out: Path) -> list[str]:
        if not self.own_type and not (saved.folder / PEFT_TENSORS).is_file():
            raise UsageError(f"{words(saved)}: stock PEFT cannot represent this adapter", "Use --to merged instead.")
        if out.exists():
            raise UsageError(f"{out} exists", "Choose another folder with -o.")
        own = own_type_of(saved, base) if self.own_type else None
        along = [p.name for p in saved.folder.iterdir() if goes_along(p) and p.name not in (CONFIG, "lrft.json")]
        stored = sum(path.stat().st_size for path in saved.folder.glob("*.safetensors"))
        with files.room_for(out, stored), files.scratch_for(out) as scratch:
            if own is None:
                along += [CONFIG, PEFT_TENSORS]
            else:
                files.write_tensors(scratch / PEFT_TENSORS, own.tensors)
                files.write_json(scratch / CONFIG, own.config)
            for name in sorted(along):
                shutil.copyfile(saved.folder / name, scratch / name)
                files.sync(scratch / name)
            if saved.head is not None:
                saved.head.save(scratch)
            kind = files.read_json(scratch / CONFIG)["peft_type"]
            scratch.rename(out)
        files.sync(out.parent)
        return [f"{len(saved.sites)} modules as PEFT {'LoRA' if kind == 'LORA' else kind}", f"base {base.name}"]


def own_type_of(saved: SavedAdapter, base: Path) -> peft_export.PeftFolder:
    """Raises UsageError where PEFT has no type of its own for the method, or cannot represent it so."""
    if saved.beside.places:
        raise UsageError(f"own_type does not hold modules that are trained in full ({', '.join(saved.beside.places)})")
    model = load_skeleton(base, head=saved.head)
    adapters = {site.name: saved.build(site) for site in saved.sites}
    attached = Attached(model, adapters, saved.composition.entries, saved.sites, saved.shared)
    weights = weight_files(base)
    stored = partial(stored_weight, Stored(model, names_in(weights)), weights)
    found = peft_export.as_own_type(attached, saved.info["base"], stored)
    if found.refused:
        raise UsageError(f"{words(saved)}: {found.refused}", "Without own_type PEFT's LoRA is written where it can be.")
    return found
