"""Merging: adapter + base folder -> a folder that plain transformers loads.

The base's safetensors files are read one tensor at a time; a target becomes `adapter.weight(W0)` in float32, rounded
once. The model is never built, so memory is that of the largest tensor, whatever the model's size. Afterwards the
written folder is loaded and its logits are compared with those of base + adapter.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft import base, files
from lrft.checkpoint import SavedAdapter, read_adapter
from lrft.core.adapter import Site
from lrft.core.linear import as_rows
from lrft.errors import CheckFailed, MissingError, UsageError
from lrft.tensorfile import DTYPES, TensorReader, TensorWriter, raw

INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
CHOICES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# What lies in the base's and the adapter's folder goes along as it is, but for weights, other tools' pickles and locks.
NOT_COPIED = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".gguf", ".h5", ".msgpack", ".onnx"),
    ".lock",
}
OWN_FILES = {"adapter_config.json", "adapter_model.safetensors", "lrft.json", "lrft.safetensors", "README.md"}


@dataclass
class MergeResult:
    """What a merge did. Norms are Frobenius norms over all sites."""

    out: Path
    base: Path
    """the folder that was merged into"""
    sites: int
    dtype: str
    update_norm: float = 0.0
    lost_norm: float = 0.0
    """of what rounding to the stored dtype took from the update"""
    worst_site: str = ""
    worst_share: float = 0.0

    @property
    def lost_share(self) -> float:
        return self.lost_norm / self.update_norm if self.update_norm else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"out": str(self.out), "base": str(self.base), "lost_share": self.lost_share}


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    base_model: str | None = None,
    dtype: str | None = None,
    accept_other_base: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MergeResult:
    """Write the merged model into the new folder `out`.

    adapter     an adapter folder
    base_model  folder or hub id, when it is not where the adapter says
    dtype       float32, bfloat16 or float16; None keeps each tensor's own
    Raises UsageError (nothing to merge, `out` exists), CheckFailed (damaged adapter, another base, nothing changed).
    """
    saved, out = read_adapter(adapter), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty", "Name another folder with -o.")
    source = base_of(saved, base_model)
    refuse_other_base(saved, source, accept_other_base)
    weights = base.weight_files(source)
    keys = tensor_keys(saved, weights)
    result = MergeResult(out, source, len(saved.sites), dtype or "as stored")

    needed = sum(path.stat().st_size for path in weights) * (2 if dtype == "float32" else 1)
    with files.room_for(out, needed), files.scratch_for(out) as temporary:
        for number, path in enumerate(weights):
            merge_file(path, temporary / path.name, saved, keys, dtype, result)
            progress(number + 1, len(weights))
        if not result.update_norm:
            raise CheckFailed("the adapter's update is zero everywhere: merging would change nothing")
        complete_folder(temporary, source, saved, dtype)
        for path in temporary.iterdir():
            files.sync(path)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
        files.sync(out.parent)
    return result


def base_of(saved: SavedAdapter, named: str | None) -> Path:
    """The base's folder: as `named` by the user, else as the adapter says. Raises MissingError with the way out."""
    if named is not None:
        return base.resolve(named, where="--base")
    try:
        return base.resolve(saved.info["base"]["name"], saved.info["base"].get("revision"), where="the adapter's base")
    except MissingError as error:
        raise MissingError(error.message, "Say where the base lies: --base FOLDER.") from error


def refuse_other_base(saved: SavedAdapter, source: Path, accepted: bool) -> None:
    trained_on = saved.info["base"].get("fingerprint")
    if not trained_on or accepted:
        return
    here = base.fingerprint(source)
    if trained_on != here:
        raise CheckFailed(
            f"the adapter was trained on a base with fingerprint {trained_on[:16]}; {source} has {here[:16]}",
            "Name the base that it was trained on with --base, or merge into this one with --accept-other-base.",
        )


def tensor_keys(saved: SavedAdapter, weights: list[Path]) -> dict[str, Site]:
    """Name of each target's tensor in the files -> its site. Raises CheckFailed for a site without a tensor.

    A checkpoint may be saved from inside its outer module ("h.0.attn" for "transformer.h.0.attn"), so a site is met
    by its name or by the longest end of its name that some tensor has; or with its words in another order
    ("language_model.model.layers" for "model.language_model.layers").
    """
    names: set[str] = set()
    for path in weights:
        with TensorReader(path) as reader:
            names |= reader.entries.keys()
    found: dict[str, Site] = {}
    for site in saved.sites:
        words = f"{site.name}.weight".split(".")
        candidates = (".".join(words[at:]) for at in range(len(words) - 1))
        same_words = (name for name in names if sorted(name.split(".")) == sorted(words))
        key = next((name for name in candidates if name in names), None) or next(same_words, None)
        if key is None or key in found:
            raise CheckFailed(
                f"the base's files hold no tensor for {site.name}: its weights are stored under other names"
            )
        found[key] = site
    return found


def merge_file(
    path: Path,
    out: Path,
    saved: SavedAdapter,
    keys: Mapping[str, Site],
    dtype: str | None,
    result: MergeResult,
) -> None:
    """One file of the base, tensor by tensor."""
    with TensorReader(path) as reader:
        stored_as = {
            name: CHOICES[dtype] if dtype and entry.dtype in FLOATS else entry.dtype
            for name, entry in reader.entries.items()
        }
        announced = {
            name: (
                stored_as[name],
                entry.shape,
                bytes_of(stored_as[name], entry.shape, entry.size, entry.dtype),
            )
            for name, entry in reader.entries.items()
        }
        with TensorWriter(out, announced, reader.metadata) as writer:
            for name, entry in reader.entries.items():
                if name in keys:
                    writer.write(name, raw(merged(reader.tensor(name), saved, keys[name], stored_as[name], result)))
                elif stored_as[name] != entry.dtype:
                    writer.write(name, raw(rounded_to(stored_as[name], reader.tensor(name), name)))
                else:
                    writer.write(name, reader.bytes(name))


def bytes_of(dtype: str, shape: tuple[int, ...], size: int, before: str) -> int:
    return size if dtype == before else math.prod(shape) * DTYPES[dtype].itemsize


@torch.no_grad()
def merged(stored: Tensor, saved: SavedAdapter, site: Site, dtype: str, result: MergeResult) -> Tensor:
    """The new tensor of one target in its storage's layout; its norms are added to `result`."""
    if not stored.is_floating_point():
        raise CheckFailed(f"{site.name} is stored as {stored.dtype} in the base: an update cannot be added to integers")
    before = as_rows(stored, site.transposed).to(site.dtype)
    if tuple(before.shape) != (site.d, site.k):
        raise CheckFailed(f"{site.name} is {tuple(before.shape)} in the base, {site.d} x {site.k} in the adapter")
    exact = saved.build(site).weight(before)
    rounded = rounded_to(dtype, exact, site.name)
    update = norm(exact - before)
    del before  # memory is that of a few copies of the largest tensor: not one more
    lost = 0.0 if rounded.dtype == exact.dtype else norm(rounded.to(exact.dtype).sub_(exact))
    result.update_norm = math.hypot(result.update_norm, update)
    result.lost_norm = math.hypot(result.lost_norm, lost)
    if update and lost / update >= result.worst_share:
        result.worst_site, result.worst_share = site.name, lost / update
    return as_rows(rounded, site.transposed).contiguous()


def rounded_to(dtype: str, exact: Tensor, name: str) -> Tensor:
    """Raises CheckFailed for a finite value that `dtype` cannot hold: float16 ends at 65504."""
    rounded = exact.to(DTYPES[dtype])
    if not finite(rounded) and finite(exact):
        raise CheckFailed(f"{name} holds values that do not fit into {str(rounded.dtype).removeprefix('torch.')}")
    return rounded


def finite(tensor: Tensor) -> bool:
    """Whether all values are. (Ten times as fast as isfinite: the extremes show NaN and infinity alike.)"""
    return not tensor.numel() or all(math.isfinite(extreme.item()) for extreme in tensor.aminmax())


def norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor).item()


def complete_folder(out: Path, source: Path, saved: SavedAdapter, dtype: str | None) -> None:
    """Everything beside the weights: configuration, generation configuration, tokenizer, template, index, card."""
    for path in source.iterdir():
        if goes_along(path):
            shutil.copyfile(path, out / path.name)
    for path in saved.folder.iterdir():  # the tokenizer and the template that trained win over the base's
        if goes_along(path) and path.name not in OWN_FILES:
            shutil.copyfile(path, out / path.name)
    if dtype:
        config = files.read_json(out / "config.json")
        config.pop("torch_dtype", None)
        files.write_json(out / "config.json", config | {"dtype": dtype})
        if (out / INDEX).exists():
            index = files.read_json(out / INDEX)
            index.setdefault("metadata", {})["total_size"] = total_size(out)
            files.write_json(out / INDEX, index)
    files.write_text(out / "README.md", card(saved))


def goes_along(path: Path) -> bool:
    """Whether a file beside the weights belongs into the merged folder."""
    hidden = path.name.startswith(".")
    return path.is_file() and path.suffix not in NOT_COPIED and not hidden and path.name != "README.md"


def total_size(folder: Path) -> int:
    size = 0
    for path in base.weight_files(folder):
        with TensorReader(path) as reader:
            size += sum(entry.size for entry in reader.entries.values())
    return size


def card(saved: SavedAdapter) -> str:
    """A short model card: what it is and how it was made. No local paths."""
    name = saved.info["base"]["name"]
    shown = Path(name).name if Path(name).is_absolute() or Path(name).exists() else name
    methods = ", ".join(entry["name"] for entry in saved.info["methods"])
    ranks = sorted({site.rank for site in saved.sites})
    return (
        f"---\nbase_model: {shown}\nlibrary_name: transformers\ntags: [lrft]\n---\n\n"
        f"# {shown}, fine-tuned\n\n"
        f"Fine-tuned with lrft {saved.info.get('lrft', '')} and merged: {methods}, rank {', '.join(map(str, ranks))}, "
        f"{len(saved.sites)} linear layers.\n"
    )
