"""Base class of exporters, which write a folder for another tool. One file each in this folder, or an entry point of
`lrft.exporters`; `lrft export RUN --to NAME` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from lrft.adapters.storage import SavedAdapter


class Exporter:
    """Abstract. A subclass is a frozen dataclass: its name after `--to`, its options, and `export`."""

    name: ClassVar[str]
    writes_model: ClassVar[bool] = False
    """whether `out` is a transformers model folder; its logits are then compared with the adapter's"""
    writes_adapter: ClassVar[bool] = False
    """whether `out` is a LoRA folder of PEFT that approximates the adapter; its logits are then compared with the
    adapter's, and `tolerance`, an option, is what they may differ by as a share of what the adapter changes"""
    writes_gguf: ClassVar[bool] = False
    """whether `out` holds model.gguf of the stored dtype `dtype`, an option; transformers then reads it back, and its
    logits and tokens are compared with the adapter's"""

    takes: ClassVar[Literal["any", "mergeable", "merged", "peft"]] = "any"
    """what of an adapter can be exported so: any; one that adds to weights; one that the base's files can hold merged;
    one that stock PEFT represents. A recipe that asks for what will not be possible is refused before its first step"""

    def ready(self) -> None:
        """Raises MissingError for a program or package that `export` needs: asked before a training that ends in it."""

    def export(self, saved: SavedAdapter, base: Path, out: Path) -> list[str]:
        """Write the new folder `out`. base: the base model's folder. Returns facts for the user.

        Raises UsageError when this adapter cannot be exported so.
        """
        raise NotImplementedError("abstract")
