"""Any adapter as a LoRA of stock PEFT: the dense update of each layer, cut to a rank by its singular values.

The best approximation of a rank (Eckart and Young, 1936). What is cut off is told for each layer, and `lrft export`
compares the logits of the result with those of the adapter.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lrft.adapters.adapter import PeftForm
from lrft.adapters.attached import Attached
from lrft.adapters.peft_export import PEFT_TENSORS, peft_config, peft_tensors
from lrft.adapters.peft_import import placed
from lrft.adapters.peft_names import peft_names
from lrft.adapters.storage import SavedAdapter, load_saved
from lrft.errors import CheckFailed, UsageError
from lrft.export.base import Exporter
from lrft.export.merge import OWN_FILES, goes_along, refuse_unmergeable
from lrft.loading.saved import load_as_trained
from lrft.utils import files
from lrft.utils.slow import tell

ENERGY = 0.99
ERRORS = "conversion.json"


class Cut(NamedTuple):
    """B (d, r) and A (r, k) of a layer, and the norm of what they lack, relative to the norm of the update."""

    A: Tensor
    B: Tensor
    error: float


@dataclass(frozen=True)
class Lora(Exporter):
    """The adapter as stock PEFT's LoRA, whatever the method: its update, cut to a rank in each layer."""

    name: ClassVar[str] = "lora"
    takes: ClassVar[Literal["mergeable"]] = "mergeable"
    writes_adapter: ClassVar[bool] = True

    rank: int | None = None
    """Rank of every layer; none takes the smallest with the energy."""
    energy: float | None = None
    """Share of the sum of squared singular values that each layer keeps; 0.99 without rank."""
    tolerance: float = 0.2
    """Largest mean logit difference to the adapter, as a share of the mean change that the adapter makes."""

    def export(self, saved: SavedAdapter, base: Path, out: Path) -> list[str]:
        self.refuse_unclear()
        refuse_unmergeable(saved)
        if out.exists():
            raise UsageError(f"{out} exists", "Choose another folder with -o.")
        model = load_as_trained(saved, base, widen=True)
        attached = load_saved(model, placed(saved, model))
        cuts: dict[str, Cut] = {}
        for name in attached.modules:
            tell("cutting updates to a rank", len(cuts), len(attached.modules))
            cuts[name] = self.cut(attached.delta(name))
        if not any(cut.B.any() for cut in cuts.values()):
            raise CheckFailed("the adapter's update is zero everywhere, so there is nothing to convert")
        write(attached, cuts, saved, out)
        worst = max(cuts, key=lambda name: cuts[name].error)
        ranks = [cut.A.shape[0] for cut in cuts.values()]
        return [
            f"{len(cuts)} modules as PEFT LoRA of rank {min(ranks)} to {max(ranks)}",
            f"largest relative error of an update {cuts[worst].error:.2%} in {worst}; all in {ERRORS}",
        ]

    def refuse_unclear(self) -> None:
        if self.rank is not None and self.energy is not None:
            raise UsageError("rank and energy exclude each other")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"rank must be at least 1 (got {self.rank})")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"energy must be above 0 and at most 1 (got {self.energy})")

    def cut(self, update: Tensor) -> Cut:
        """update: dW (d, k)"""
        return self.kept(*torch.linalg.svd(update.float(), full_matrices=False))

    def kept(self, U: Tensor, S: Tensor, Vh: Tensor) -> Cut:
        """The same of an update's decomposition: U (d, n), S (n,), Vh (n, k)."""
        squares = S.double().square()
        total = squares.sum().item()
        if self.rank is None:
            wanted = (ENERGY if self.energy is None else self.energy) * total
            rank = int((squares.cumsum(0) < wanted).sum()) + 1
        else:
            rank = self.rank
        rank = min(rank, len(S))
        root = S[:rank].sqrt()
        lost = squares[rank:].sum().item()
        return Cut(root[:, None] * Vh[:rank], U[:, :rank] * root, math.sqrt(lost / total) if total else 0.0)


def write(attached: Attached, cuts: Mapping[str, Cut], saved: SavedAdapter, out: Path) -> None:
    """The folder of PEFT, whole or not at all. Raises UsageError where PEFT does not find the layers."""
    forms = {name: PeftForm(cut.A, cut.B, 1.0) for name, cut in cuts.items()}
    names = peft_names(attached, forms, saved.quantization)
    if names.refused:
        raise UsageError(f"stock PEFT cannot load this adapter: {names.refused}", "Use --to merged instead.")
    tensors = peft_tensors(forms, attached, saved.info["base"])
    errors = {name: {"rank": cut.A.shape[0], "relative error": cut.error} for name, cut in cuts.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with files.room_for(out, size), files.scratch_for(out) as scratch:
        files.write_tensors(scratch / PEFT_TENSORS, tensors)
        config = peft_config(attached, forms, saved.info["base"], names)
        files.write_json(scratch / "adapter_config.json", config | {"lora_dropout": 0.0})
        files.write_json(scratch / ERRORS, errors)
        for path in saved.folder.iterdir():
            if goes_along(path) and path.name not in OWN_FILES:
                shutil.copyfile(path, scratch / path.name)
                files.sync(scratch / path.name)
        if saved.head is not None:
            saved.head.save(scratch)
        scratch.rename(out)
    files.sync(out.parent)
