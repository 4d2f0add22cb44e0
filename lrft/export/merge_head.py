"""The part of a merge that is no update of a layer: modules that were trained in full, rows of embedding and head,
biases, and the configuration that loads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft.adapters.beside import embedding_of, head_of, name_of
from lrft.adapters.storage import SavedAdapter
from lrft.errors import CheckFailed
from lrft.model.added_tokens import Added, with_rows
from lrft.model.stored import Stored
from lrft.utils import files
from lrft.utils.safetensors_stream import TensorReader

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class HeadMerge:
    """given: tensors to be written, by their names in the files. unread: those of the base that no module of the
    merged model reads, such as the output layer of a language model."""

    given: Mapping[str, Tensor] = field(default_factory=dict)
    unread: Collection[str] = frozenset()
    of_base: Collection[str] = frozenset()
    """names of all tensors of the base"""
    config: Mapping[str, Any] = field(default_factory=dict)
    """keys of the merged model's configuration that follow"""

    def of_file(self, names: Collection[str], last: bool) -> HeadMerge:
        """What concerns a file with the tensors `names`. The last one takes what the base has no tensor for."""
        chosen = {name: t for name, t in self.given.items() if name in names}
        if last:
            chosen |= self.new
        return HeadMerge(chosen, self.unread, self.of_base, self.config)

    @property
    def new(self) -> dict[str, Tensor]:
        """Those that the base has no tensor for."""
        return {name: t for name, t in self.given.items() if name not in self.of_base}


def head_merge(saved: SavedAdapter, skeleton: Any, weights: Sequence[Path]) -> HeadMerge:
    """skeleton: the model with its head and new tokens, without content. weights: the base's files.

    Raises CheckFailed for a trained tensor that the files do not have as it is.
    """
    if saved.head is None and saved.added is None and not saved.beside.places:
        return HeadMerge()
    names: set[str] = set()
    for path in weights:
        with TensorReader(path) as reader:
            names |= reader.entries.keys()
    stored = Stored(skeleton, names)
    given = {}
    for module in saved.beside.full:
        for word, tensor in saved.tensors[module].items():
            given[key_for(stored, f"{module}.{word}")] = tensor
    for layer in saved.beside.biases:
        given[key_for(stored, f"{layer}.bias")] = saved.tensors[f"{layer}.bias"]["value"]
    more, config = by_token(saved, skeleton, stored, weights)
    given |= more
    if saved.head is None:
        return HeadMerge(given, frozenset(), frozenset(names), config)
    read = {tensor for name, source in stored.sources.items() if name in stored.known for tensor in source.tensors}
    return HeadMerge(given, frozenset(names) - read - given.keys(), frozenset(names), config)


def key_for(stored: Stored, name: str) -> str:
    """The name that a parameter has in the files; its own, where they lack it. Raises CheckFailed where it is none."""
    source = stored.source(name)
    if source is None:
        return name
    if not source.as_it_is:
        raise CheckFailed(f"the base's files have no separate tensor for {name}: it is part of {source.tensors[0]}")
    return source.tensors[0]


def by_token(
    saved: SavedAdapter, skeleton: Any, stored: Stored, weights: Sequence[Path]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(embedding and head with new and trained rows, and apart where one of them was trained in full; keys of the
    configuration that follow)."""
    names, added = saved.beside, saved.added
    if added is None and not names.rows and not names.full:
        return {}, {}
    embedding, head = embedding_of(skeleton), head_of(skeleton)
    if embedding is None:
        return {}, {}
    first, second = name_of(skeleton, embedding), name_of(skeleton, head)
    tied = head is not None and head.weight is embedding.weight
    apart = tied and bool({first, second} & {*names.full} or second in names.rows)
    config: dict[str, Any] = {"tie_word_embeddings": False} if apart else {}
    found: dict[str, Tensor] = {}
    if added is not None:
        config["vocab_size"] = len(embedding.weight)
    elif not names.rows and not apart:
        return {}, config
    base = key_for(stored, f"{first}.weight")
    if first not in names.full:
        found[base] = with_trained(saved, first, stored_tensor(weights, base), added)
    if head is None or second in names.full:
        return found, config
    key = key_for(stored, f"{second}.weight")
    if apart:
        found[key] = with_trained(saved, second, stored_tensor(weights, base), added)
    elif tied and key in stored_names(stored):
        found[key] = found[base].clone()
    elif not tied and (added is not None or second in names.rows):
        found[key] = with_trained(saved, second, stored_tensor(weights, key), added)
    if added is not None and head.bias is not None and second not in names.biases:
        bias = key_for(stored, f"{second}.bias")
        found[bias] = with_rows(stored_tensor(weights, bias), added)
    return found, config


def stored_names(stored: Stored) -> set[str]:
    return {tensor for source in stored.sources.values() for tensor in source.tensors}


def with_trained(saved: SavedAdapter, name: str, weight: Tensor, added: Added | None) -> Tensor:
    """The weight (rows, k) of an embedding or head, with the rows that were added and those that were trained."""
    grown = weight.clone() if added is None else with_rows(weight, added)
    if name in saved.beside.rows:
        rows = saved.tensors[name]["rows"]
        grown = grown.to(torch.promote_types(grown.dtype, rows.dtype))
        grown[list(saved.beside.rows[name])] = rows.to(grown.dtype)
    return grown


def stored_tensor(weights: Sequence[Path], key: str) -> Tensor:
    """A tensor of the base's files. Raises CheckFailed where they have none of this name."""
    for path in weights:
        with TensorReader(path) as reader:
            if key in reader.entries:
                return reader.tensor(key)
    raise CheckFailed(f"the base's files have no tensor {key}")


def write_keys(out: Path, keys: Mapping[str, Any]) -> None:
    """Keys of config.json, and of the configuration of the text in it where that has them."""
    config = files.read_json(out / "config.json")
    text = config.get("text_config")
    if isinstance(text, dict):
        text |= {key: value for key, value in keys.items() if key in text or key not in config}
    config |= {
        key: value for key, value in keys.items() if not isinstance(text, dict) or key in config or key != "vocab_size"
    }
    files.write_json(out / "config.json", config)


def write_config(out: Path, saved: SavedAdapter, skeleton: Any) -> None:
    """Class, labels, problem and padding token in the folder's config.json, and what else loads it."""
    config = files.read_json(out / "config.json")
    if saved.head is not None and saved.head.embedder is not None:
        files.write_json(out / "config.json", config | {"architectures": [type(skeleton).__name__]})
        saved.head.save(out)
        return
    made = skeleton.config.to_dict()
    written = {key: made[key] for key in ("id2label", "label2id", "problem_type", "pad_token_id") if key in made}
    config.pop("num_labels", None)
    config |= {key: value for key, value in written.items() if value is not None}
    config["id2label"] = {str(number): name for number, name in made["id2label"].items()}
    config["architectures"] = [type(skeleton).__name__]
    if "text_config" in config and saved.head is not None and saved.head.pad_id is not None:
        config["text_config"]["pad_token_id"] = saved.head.pad_id
    files.write_json(out / "config.json", config)


def write_index(out: Path, head: HeadMerge, last: str, size: int) -> None:
    """The index without tensors that were left out, and with the new ones, which lie in the file `last`.

    size: bytes of all tensors
    """
    if not (out / INDEX).is_file():
        return
    index = files.read_json(out / INDEX)
    kept = {name: file for name, file in index["weight_map"].items() if name not in head.unread}
    whole = {"weight_map": kept | dict.fromkeys(head.new, last)}
    files.write_json(out / INDEX, index | whole | {"metadata": {**index.get("metadata", {}), "total_size": size}})
