"""What full fine-tuning did to a model, as a LoRA: the difference of two model folders, cut to a rank in each layer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lrft.adapters import compose, storage
from lrft.adapters.attach import attach_sites
from lrft.adapters.targets import site_of
from lrft.errors import CheckFailed, UsageError
from lrft.export.lora import Cut, Lora
from lrft.export.merge import OWN_FILES, goes_along
from lrft.export.merge_places import names_in
from lrft.model import linear
from lrft.model.load import load_model, load_skeleton
from lrft.model.stored import Stored
from lrft.model.weights import fingerprint, weight_files
from lrft.utils import files

FACTS = "conversion.json"


@dataclass(frozen=True)
class Extracted:
    """Of `extract_lora`."""

    cuts: Mapping[str, Cut]
    """by module, those whose weight differs"""
    beside: tuple[str, ...]
    """names of tensors that differ and are no linear layer's weight: a LoRA does not hold them"""

    @property
    def worst(self) -> str:
        return max(self.cuts, key=lambda name: self.cuts[name].error)


def extract_lora(base: Path, tuned: Path, out: Path, how: Lora, *, trust_remote_code: bool = False) -> Extracted:
    """Write the adapter folder `out`, with the tokenizer of `tuned`. Two tensors of a layer are held at a time.

    how: its rank or energy. Raises UsageError for models that are not of one shape, CheckFailed where no linear layer
    differs.
    """
    how.refuse_unclear()
    if out.exists():
        raise UsageError(f"{out} exists", "Choose another folder with -o.")
    skeleton = load_skeleton(base, trust_remote_code)
    stored = Stored(skeleton, names_in(weight_files(base)))
    sources = {name: stored.source(f"{name}.weight") for name, _ in linear.named_linears(skeleton)}
    keys = {source.tensors[0]: name for name, source in sources.items() if source is not None and source.as_it_is}
    layers = dict(linear.named_linears(skeleton))
    cuts, beside = {}, []
    for key, before, after in pairs(base, tuned):
        if torch.equal(before, after):
            continue
        if key not in keys or keys[key] in tied(skeleton):
            beside.append(key)
            continue
        name = keys[key]
        change = after.float() - before.float()
        cuts[name] = how.cut(change.T if linear.stored_transposed(layers[name]) else change)
    if not cuts:
        raise CheckFailed(f"no linear layer of {tuned} differs from {base}, so there is nothing to convert")
    found = Extracted(cuts, tuple(beside))
    write(base, tuned, out, found, trust_remote_code)
    return found


def pairs(base: Path, tuned: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, tensor of base, tensor of tuned) of every tensor. Raises UsageError where names or shapes differ."""
    with ExitStack() as opened:
        both = []
        for folder in (base, tuned):
            found: dict[str, Any] = {}
            for path in weight_files(folder):
                handle = opened.enter_context(safe_open(path, framework="pt"))
                found |= dict.fromkeys(handle.keys(), handle)
            both.append(found)
        before, after = both
        if apart := sorted(before.keys() ^ after.keys()):
            who = base if apart[0] in before else tuned
            raise UsageError(f"{apart[0]} is in {who} alone: {base} and {tuned} are not of one architecture")
        for key in sorted(before):
            own, its = before[key].get_tensor(key), after[key].get_tensor(key)
            if own.shape != its.shape:
                raise UsageError(f"{key} is {tuple(own.shape)} in {base} and {tuple(its.shape)} in {tuned}")
            yield key, own, its


def tied(skeleton: Any) -> set[str]:
    """Linear layers whose weight is the embedding's: an adapter on one would not change the other."""
    embedding = skeleton.get_input_embeddings()
    return {name for name, layer in linear.named_linears(skeleton) if layer.weight is embedding.weight}


def write(base: Path, tuned: Path, out: Path, found: Extracted, trust_remote_code: bool) -> None:
    """The folder, whole or not at all: lrft's and stock PEFT's."""
    model = load_model(base, dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
    modules = dict(linear.named_linears(model))
    sites = [site_of(name, modules[name], rank=len(cut.A), scale=1.0, dropout=0.0) for name, cut in found.cuts.items()]
    attached = attach_sites(model, sites, compose.compose([("lora", {})]), seed=0, fresh=False)
    for name, cut in found.cuts.items():
        attached.modules[name].load({"A": cut.A, "B": cut.B})
    errors = {name: {"rank": len(cut.A), "relative error": cut.error} for name, cut in found.cuts.items()}
    info = {"name": str(base), "revision": None, "fingerprint": fingerprint(base), "dtype": "float32"}
    size = sum(tensor.numel() * tensor.element_size() for tensor in attached.tensors().values())
    with files.room_for(out, size), files.scratch_for(out) as scratch:
        beside = [path.name for path in tuned.iterdir() if is_of_tokenizer(path)]
        for name in beside:
            shutil.copyfile(tuned / name, scratch / name)
            files.sync(scratch / name)
        storage.save_adapter(attached, scratch, base=info, beside=beside)
        files.write_json(scratch / FACTS, {"layers": errors, "left out": list(found.beside)})
        scratch.rename(out)
    files.sync(out.parent)


def is_of_tokenizer(path: Path) -> bool:
    """Whether a file of a model folder goes along with an adapter: of the tokenizer, template or generation."""
    of_model = path.name in ("config.json", "model.safetensors.index.json") or path.name in OWN_FILES
    return goes_along(path) and not of_model
