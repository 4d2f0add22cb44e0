"""The part of a merge that is not an update: a head that was trained in full, and the configuration that loads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lrft.adapters.storage import SavedAdapter
from lrft.model.stored import Stored
from lrft.utils import files

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class HeadMerge:
    """given: tensors to be written, by their names in the files. unread: those of the base that no module of the
    merged model reads, such as the output layer of a language model."""

    given: Mapping[str, Tensor] = field(default_factory=dict)
    unread: Collection[str] = frozenset()
    of_base: Collection[str] = frozenset()
    """names of all tensors of the base"""

    def of_file(self, names: Collection[str], last: bool) -> HeadMerge:
        """What concerns a file with the tensors `names`. The last one takes what the base has no tensor for."""
        chosen = {name: t for name, t in self.given.items() if name in names}
        if last:
            chosen |= self.new
        return HeadMerge(chosen, self.unread, self.of_base)

    @property
    def new(self) -> dict[str, Tensor]:
        """Those that the base has no tensor for."""
        return {name: t for name, t in self.given.items() if name not in self.of_base}


def head_merge(saved: SavedAdapter, skeleton: Any, names: Collection[str]) -> HeadMerge:
    """skeleton: the model with its head, without content. names: of all tensors in the base's files."""
    if saved.head is None:
        return HeadMerge()
    stored = Stored(skeleton, names)
    given = {}
    for module in saved.modules_to_save:
        for word, tensor in saved.tensors[module].items():
            source = stored.sources.get(f"{module}.{word}")
            given[source.tensors[0] if source and source.as_it_is else f"{module}.{word}"] = tensor
    read = {tensor for name, source in stored.sources.items() if name in stored.known for tensor in source.tensors}
    return HeadMerge(given, frozenset(names) - read - given.keys(), frozenset(names))


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
