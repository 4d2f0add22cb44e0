"""Merging: adapter + base folder -> a folder that plain transformers loads.

The base's safetensors files are read piece by piece (`pieces`); a target becomes `adapter.weight(W0)` in float32,
rounded once. Where it lies in the files is found without transformers wherever that is possible (`places`). Memory is
that of a few pieces, or of the largest tensor when the adapter states its weight only as a whole. (But where W0 is to
be the weight that a quantised base had, it comes from that base, and every quantised weight is written as it was
there.) Afterwards the written folder is loaded and its logits are compared with those of base + adapter.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from lrft.adapters.adapter import Site
from lrft.adapters.attach import build_site
from lrft.adapters.peft_import import read_any
from lrft.adapters.storage import SavedAdapter
from lrft.errors import CheckFailed, UsageError
from lrft.export.merge_experts import is_expert, readable
from lrft.export.merge_head import INDEX, write_config, write_index, write_keys
from lrft.export.merge_places import names_in, places
from lrft.export.merge_shards import Change, TrainedOn, merge_file, refuse_unfit, workers_for
from lrft.export.merged_card import model_card
from lrft.export.shrink import Shrunk, shrink
from lrft.loading.base import base_of, refuse_other_base
from lrft.model import linear
from lrft.model.quantized import QuantizedLinear
from lrft.model.stored import Stored
from lrft.model.weight_names import weight_keys
from lrft.model.weights import weight_files
from lrft.utils import files
from lrft.utils.hardware import DTYPES
from lrft.utils.safetensors_stream import TensorReader
from lrft.utils.slow import tell

# What lies in the base's and the adapter's folder goes along as it is, but for weights, other tools' pickles and locks.
NOT_COPIED = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".gguf", ".h5", ".msgpack", ".onnx"),
    ".lock",
}
TEMPLATES = "additional_chat_templates"  # where transformers keeps the named ones
OWN_FILES = {
    *("adapter_config.json", "adapter_model.safetensors", "lrft.json", "lrft.safetensors", "README.md"),
    "trainer_state.json",  # lies in the checkpoints of other trainers
}


of_merge = partial(tell, "merging, tensors")


@dataclass
class MergeResult:
    """Result of a merge. Norms are Frobenius norms over all sites."""

    out: Path
    base: Path
    """folder of the base model"""
    sites: int
    dtype: str
    update_norm: float = 0.0
    lost_norm: float = 0.0
    """norm of the part of the update lost to rounding to the stored dtype"""
    worst_site: str = ""
    worst_share: float = 0.0
    shrunk: Shrunk | None = None
    """what of the base was cut out, where the adapter masks heads or channels"""
    left_out: list[str] = field(default_factory=list)
    """tensors of the base that the merged model does not read"""
    beside: int = 0
    """tensors that were written as they were trained: a head, an embedding, norms, biases"""

    def add(self, changes: Mapping[str, Change]) -> None:
        for site, change in changes.items():
            update, lost = math.sqrt(change.update), math.sqrt(change.lost)
            self.update_norm = math.hypot(self.update_norm, update)
            self.lost_norm = math.hypot(self.lost_norm, lost)
            if update and lost / update >= self.worst_share:
                self.worst_site, self.worst_share = site, lost / update

    @property
    def lost_share(self) -> float:
        return self.lost_norm / self.update_norm if self.update_norm else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"out": str(self.out), "base": str(self.base), "lost_share": self.lost_share}


def merge_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    base_model: str | None = None,
    dtype: str | None = None,
    accept_other_base: bool = False,
    into: str = "original",
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] = of_merge,
) -> MergeResult:
    """Write the merged model into the new folder `out`.

    adapter     an adapter folder, lrft's or PEFT's
    base_model  folder or hub id, when it is not where the adapter says
    dtype       float32, bfloat16 or float16; None keeps each tensor's own
    into        original, or dequantized for an adapter that was trained on a quantised base: the weights that were
                trained against. The quantised model is then held in memory, and several of its largest tensors.
    progress    is told the tensors of the base that are done, and all of them
    Raises UsageError (nothing to merge, `out` exists), CheckFailed (damaged adapter, another base, nothing changed).
    """
    saved, out = read_any(Path(adapter)), Path(out)
    files.refuse_taken(out)
    refuse_unmergeable(saved)
    if into == "dequantized" and saved.quantization == "none":
        raise UsageError("this adapter was not trained on a quantised base: --into dequantized does not apply")
    if into == "original" and saved.quantization != "none" and (why := saved.composition.keeps_dequantized):
        raise UsageError(f"not merged into the original base: {why}")
    source = base_of(saved, base_model)
    refuse_other_base(saved, source, accept_other_base)
    weights = weight_files(source)
    at = places(saved, source, weights, trust_remote_code)
    saved, head, total = at.saved, at.head, len(names_in(weights))
    trained_on = dequantized(saved, source, weights, trust_remote_code) if into == "dequantized" else TrainedOn()
    result = MergeResult(out, source, len(saved.sites), dtype or "as stored", left_out=sorted(head.unread))

    needed = sum(path.stat().st_size for path in weights) * (2 if dtype == "float32" else 1)
    with files.room_for(out, needed), files.scratch_for(out) as temporary:
        with workers_for(saved) as workers:
            done = count(1)

            def reached() -> None:
                progress(next(done), total)

            for path in weights:
                last = path == weights[-1]
                to = temporary / path.name
                result.add(
                    merge_file(
                        path, to, saved, at.keys, dtype, workers, trained_on, head, at.experts, reached, last=last
                    )
                )
        result.beside = len(head.given)
        if not result.update_norm and not head.given:
            raise CheckFailed("the adapter's update is zero everywhere, so merging would change nothing")
        complete_folder(temporary, source, saved, dtype)
        if saved.head is not None and at.model is not None:
            write_config(temporary, saved, at.model[0])
        if head.config:
            write_keys(temporary, head.config)
        if head.given or head.unread:
            write_index(temporary, head, weights[-1].name, total_size(temporary))
        if at.kept and at.model is not None:
            result.shrunk = shrink(temporary, at.kept, *at.model)
        if (dtype or result.shrunk) and (temporary / INDEX).exists():
            count_again(temporary)
        with ThreadPoolExecutor() as pool:  # the disk brings many files home in the time of one
            list(pool.map(files.sync, temporary.iterdir()))
        if out.exists():
            out.rmdir()
        temporary.rename(out)
        files.sync(out.parent)
    return result


def refuse_unmergeable(saved: SavedAdapter) -> None:
    """Raises UsageError for adapters that cannot be merged (their output is not linear in the input)."""
    known = [site for site in saved.sites if site.d and site.k]  # of PEFT's that do not tell their sides all are
    # Without the values: of a folder of PEFT some may still have to be counted from the base.
    if not all(build_site(site, saved.composition, None, fresh=False).mergeable for site in known):
        names = ", ".join(entry["name"] for entry in saved.info["methods"])
        raise UsageError(
            f"{names}: not mergeable (its output is not linear in the layer's input)",
            "Use it as an adapter, with `lrft eval` or lrft.load_adapter.",
        )


def unmergeable(sites: Iterable[Site], stored: Stored, weights: list[Path]) -> str:
    """Why the weights of `sites` cannot be written into the base's files; "" when they can. Only headers are read."""
    try:
        sites = list(sites)
        wanted = {site.name: site for site in sites if not is_expert(site)}
        keys = {key: wanted[name] for name, key in weight_keys(wanted, stored).items()}
        shapes: dict[str, Any] = {}
        for path in weights:
            with TensorReader(path) as reader:
                shapes |= {name: entry.shape for name, entry in reader.entries.items()}
                for key in reader.entries.keys() & keys.keys():
                    refuse_unfit(keys[key], reader.entries[key], reader.dtype(key))
        readable(sites, stored, shapes)
    except CheckFailed as error:
        return error.message
    return ""


def dequantized(saved: SavedAdapter, source: Path, weights: list[Path], trusted: bool) -> TrainedOn:
    """The weights that were trained against, by the names of their tensors in the files."""
    from lrft.loading.saved import load_as_trained

    dtype = DTYPES[saved.info["base"].get("dtype", "float32")]
    model = load_as_trained(saved, source, trust_remote_code=trusted, on_device=False)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    keys = weight_keys(layers, Stored(model, names_in(weights)))
    return TrainedOn({keys[name]: partial(as_stored, layer) for name, layer in layers.items()}, dtype)


def as_stored(layer: QuantizedLinear) -> Tensor:
    """A quantised layer's weight as the base's files have it: (k, d) for some."""
    return linear.as_rows(linear.dense(layer), linear.stored_transposed(layer))


def complete_folder(out: Path, source: Path, saved: SavedAdapter, dtype: str | None) -> None:
    """Everything beside the weights: configuration, generation configuration, tokenizer, template, index, card."""
    for path in source.iterdir():
        if goes_along(path):
            shutil.copyfile(path, out / path.name)
    # The tokenizer, the templates and the end tokens that trained win over the base's.
    for path in saved.folder.iterdir():
        if goes_along(path) and path.name not in OWN_FILES:
            shutil.copyfile(path, out / path.name)
    if (saved.folder / TEMPLATES).is_dir():
        shutil.copytree(saved.folder / TEMPLATES, out / TEMPLATES)
    if dtype:
        config = files.read_json(out / "config.json")
        config.pop("torch_dtype", None)
        files.write_json(out / "config.json", config | {"dtype": dtype})
    files.write_text(out / "README.md", model_card(saved))


def goes_along(path: Path) -> bool:
    """Whether a file beside the weights belongs into the merged folder."""
    hidden = path.name.startswith(".")
    return path.is_file() and path.suffix not in NOT_COPIED and not hidden and path.name != "README.md"


def count_again(folder: Path) -> None:
    """Write into the index how many bytes the tensors have."""
    index = files.read_json(folder / INDEX)
    index.setdefault("metadata", {})["total_size"] = total_size(folder)
    files.write_json(folder / INDEX, index)


def total_size(folder: Path) -> int:
    size = 0
    for path in weight_files(folder):
        with TensorReader(path) as reader:
            size += sum(entry.size for entry in reader.entries.values())
    return size
