"""Where in the base's files lies what an adapter changes.

Mostly a layer's weight has the layer's name there, and names and shapes of the files say enough. Else the model is
built without its weights, which takes transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lrft.adapters.adapter import Site
from lrft.adapters.peft_import import placed
from lrft.adapters.storage import SavedAdapter
from lrft.export.merge_experts import Merged, is_expert, merged_experts
from lrft.export.merge_head import HeadMerge, head_merge, stored_tensor
from lrft.export.shrink import masked
from lrft.model import linear
from lrft.model.load import load_skeleton
from lrft.model.own_names import reads_own_names
from lrft.model.stored import Stored
from lrft.model.weight_names import weight_keys
from lrft.utils.safetensors_stream import TensorReader


@dataclass(frozen=True)
class Places:
    """saved: with its sites as the base has them. keys: name of each target's tensor -> its site."""

    saved: SavedAdapter
    keys: Mapping[str, Site]
    head: HeadMerge = field(default_factory=HeadMerge)
    experts: Mapping[str, Merged] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """inputs that are not masked, of layers where some are"""
    model: tuple[Any, Stored] | None = None
    """without weights, and its parameters in the files; None where nothing is to be known of it"""


def places(saved: SavedAdapter, source: Path, weights: list[Path], trust_remote_code: bool) -> Places:
    """source: the base's folder, weights: its files. Raises CheckFailed for a site that has no place in them."""
    names, kept = names_in(weights), masked(saved)
    changes_layers_alone = not (kept or saved.head or saved.added or saved.beside.places)
    if changes_layers_alone and "format" in saved.info and reads_own_names(source):
        own = {f"{site.name}.weight": site for site in saved.sites}
        if own.keys() <= names:
            return Places(saved, own)
    skeleton = load_skeleton(source, trust_remote_code, saved.head, saved.added)
    stored = Stored(skeleton, names)
    saved = placed(saved, skeleton, partial(stored_weight, stored, weights))
    head = head_merge(saved, skeleton, weights)
    keys, experts = tensor_keys(saved, stored), merged_experts(saved, stored, weights)
    return Places(saved, keys, head, experts, kept, (skeleton, stored))


def tensor_keys(saved: SavedAdapter, stored: Stored) -> dict[str, Site]:
    """Name of each target's tensor in the files -> its site, without experts. Raises CheckFailed for a site without a
    tensor."""
    layers = [site for site in saved.sites if not is_expert(site)]
    keys = weight_keys([site.name for site in layers], stored)
    return {keys[site.name]: site for site in layers}


def stored_weight(stored: Stored, weights: list[Path], site: Site) -> Tensor:
    """The base's (d, k) of a site that is no expert, as its files have it. Raises CheckFailed where they do not."""
    (key,) = weight_keys([site.name], stored).values()
    return linear.as_rows(stored_tensor(weights, key), site.transposed)


def names_in(weights: list[Path]) -> set[str]:
    """Names of all tensors in the files."""
    names: set[str] = set()
    for path in weights:
        with TensorReader(path) as reader:
            names |= reader.entries.keys()
    return names
