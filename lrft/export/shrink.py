"""A merged folder whose model has masked heads and channels -> one without them, which plain transformers loads.

A configuration has one number of heads and one of channels for all blocks. So each block keeps as many as the one that
has most left; where it has fewer left, masked ones stay to fill the places, whose columns are zero. Some families take
only numbers of heads that divide the hidden size: the next larger such number is then kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft.adapters.pruning import MaskingPart, masks
from lrft.adapters.storage import SavedAdapter
from lrft.model.pruning import Units, units_of
from lrft.model.stored import Stored
from lrft.model.weight_names import weight_keys
from lrft.model.weights import weight_files
from lrft.utils import files
from lrft.utils.safetensors_stream import TensorReader, TensorWriter, raw
from lrft.utils.text import count


@dataclass(frozen=True)
class Shrunk:
    """What a merged model has of heads (queries) and channels. `filled`: masked ones that stay in place, per kind."""

    heads: int
    heads_before: int
    channels: int
    channels_before: int
    filled: Mapping[str, int]
    """heads, channels: how many masked units are left in the model"""

    @property
    def lines(self) -> list[str]:
        found = [f"{self.heads_before} -> {self.heads} heads, {self.channels_before} -> {self.channels} channels"]
        rest = [count(n, {"heads": "key-value head"}.get(kind, "channel")) for kind, n in self.filled.items() if n]
        if rest:
            found.append(f"{' and '.join(rest)} of all blocks stay although pruned: one number holds for every block")
        return found


def masked(saved: SavedAdapter) -> dict[str, Tensor]:
    """Which inputs of a layer are masked in a saved adapter: site -> bool (k,), true where they are not."""
    found: dict[str, Tensor] = {}
    if not any(isinstance(part, MaskingPart) for part in saved.composition.parts):
        return found
    for site in saved.sites:
        for mask in masks([saved.build(site)]):
            found[site.name] = mask.kept.detach() > 0
    return found


def shrink(folder: Path, kept: Mapping[str, Tensor], model: Any, stored: Stored) -> Shrunk | None:
    """Cut what is masked out of the model in `folder`, in place; None where nothing can go.

    kept    of `masked`
    model   the model of the folder as it is, on any device
    stored  its tensors in the files
    """
    units = units_of(model)
    left = {one.name: left_of(one, kept) for one in units}
    sizes = {kind: size_of(kind, units, left, model.config) for kind in ("heads", "channels")}
    config = model.config
    before = {"heads": config.num_key_value_heads, "channels": config.intermediate_size}
    if sizes == before:
        return None
    chosen = {one.name: filled_up(left[one.name], sizes[one.kind]) for one in units}
    cuts = cuts_of(units, chosen, stored)
    for path in weight_files(folder):
        cut_file(path, cuts)
    files.write_json(folder / "config.json", resized(files.read_json(folder / "config.json"), sizes, config))
    group = config.num_attention_heads // config.num_key_value_heads
    rest = {kind: sum(sizes[kind] - int(left[u.name].sum()) for u in units if u.kind == kind) for kind in sizes}
    heads = sizes["heads"] * group
    return Shrunk(heads, config.num_attention_heads, sizes["channels"], before["channels"], rest)


def left_of(units: Units, kept: Mapping[str, Tensor]) -> Tensor:
    """(count,) bool: the units that are not masked."""
    if units.reader not in kept:
        return torch.ones(units.count, dtype=torch.bool)
    return kept[units.reader].reshape(units.count, units.width)[:, 0]


def size_of(kind: str, units: list[Units], left: Mapping[str, Tensor], config: Any) -> int:
    """Units that each block of the smaller model has: the least number that is enough and that the family takes."""
    counts = [one.count for one in units if one.kind == kind]
    enough = max((int(left[one.name].sum()) for one in units if one.kind == kind), default=0)
    return next(size for size in range(enough, max(counts) + 1) if size == max(counts) or takes(kind, size, config))


def takes(kind: str, size: int, config: Any) -> bool:
    """Whether a configuration of the family may have `size` units."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        type(config).from_dict(resized(config.to_dict(), {kind: size}, config))
    except (ValueError, StrictDataclassError):
        return False
    return True


def resized(content: dict[str, Any], sizes: Mapping[str, int], config: Any) -> dict[str, Any]:
    """The content of a config.json with other numbers of heads and channels."""
    group = config.num_attention_heads // config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    content = {**content, "head_dim": size}
    if "heads" in sizes:
        content |= {"num_key_value_heads": sizes["heads"], "num_attention_heads": sizes["heads"] * group}
    if "channels" in sizes:
        content |= {"intermediate_size": sizes["channels"]}
    return content


def filled_up(left: Tensor, size: int) -> Tensor:
    """Indices of `size` units: those that are left and, where they are fewer, the first masked ones."""
    return left.float().argsort(descending=True, stable=True)[:size].sort().values


def cuts_of(units: list[Units], chosen: Mapping[str, Tensor], stored: Stored) -> dict[str, tuple[int, Tensor]]:
    """Name of a tensor in the files -> (dimension, indices that stay)."""
    found: dict[str, tuple[int, Tensor]] = {}
    for one in units:
        keys = weight_keys([*one.rows, one.reader], stored)
        found[keys[one.reader]] = (1, one.kept_columns(chosen[one.name]))
        for layer in one.rows:
            rows = one.kept_rows(layer, chosen[one.name])
            found[keys[layer]] = (0, rows)
            bias = stored.source(f"{layer}.bias")
            if bias is not None:
                found[bias.tensors[0]] = (0, rows)
    return found


def cut_file(path: Path, cuts: Mapping[str, tuple[int, Tensor]]) -> None:
    """Write a file of weights anew without the rows and columns that go, tensor by tensor."""
    beside = path.with_name(f"{path.name}.smaller")
    with TensorReader(path) as reader:
        announced = {}
        for name, entry in reader.entries.items():
            shape = list(entry.shape)
            if name in cuts:
                dim, indices = cuts[name]
                shape[dim] = len(indices)
            announced[name] = (entry.dtype, tuple(shape), math.prod(shape) * reader.dtype(name).itemsize)
        with TensorWriter(beside, announced, reader.metadata) as writer:
            for name in reader.entries:
                tensor = reader.tensor(name)
                if name in cuts:
                    dim, indices = cuts[name]
                    tensor = tensor.index_select(dim, indices)
                writer.write(name, 0, raw(tensor))
    files.sync(beside)
    beside.rename(path)
