"""Several adapters over one base made into one, a LoRA that lrft and stock PEFT load."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters import combine, compose, storage
from lrft.adapters.adapter import Factors, Site
from lrft.adapters.attach import attach_sites
from lrft.adapters.peft_import import placed, read_any
from lrft.adapters.storage import SavedAdapter
from lrft.adapters.updates import update_of, words
from lrft.errors import UsageError
from lrft.export.merge import OWN_FILES, goes_along
from lrft.loading.base import base_of, refuse_other_base
from lrft.loading.saved import load_as_trained
from lrft.model import linear
from lrft.model.experts import unstack_for
from lrft.model.weights import fingerprint
from lrft.utils import files

FACTS = "combined.json"


@dataclass(frozen=True)
class CombineResult:
    """Of `combine_adapters`. errors: module -> relative error of what was cut to the rank."""

    modules: int
    ranks: tuple[int, int]
    """lowest and highest"""
    errors: Mapping[str, float]

    @property
    def worst(self) -> str:
        return max(self.errors, key=lambda name: self.errors[name])


def combine_adapters(
    folders: Sequence[Path],
    out: Path,
    *,
    how: str,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
    base_model: str | None = None,
    trust_remote_code: bool = False,
) -> CombineResult:
    """Write the new adapter folder `out`, with the tokenizer of the first.

    rank: of the ways that cut; None for the largest rank of the adapters. weights: None for 1/n, and for 1 where the
    way averages by itself. Raises UsageError for adapters that do not go together, CheckFailed for another base.
    """
    if out.exists():
        raise UsageError(f"{out} exists", "Choose another folder with -o.")
    saved = [read_any(folder) for folder in folders]
    base = base_of(saved[0], base_model)
    refuse_apart(saved, base)
    model = load_as_trained(saved[0], base, trust_remote_code=trust_remote_code, widen=True)
    saved = [placed(each, model) for each in saved]
    for each in saved:
        unstack_for(model, [site.name for site in each.sites])
    weights = weights or [1.0 if how in combine.AVERAGING else 1 / len(saved)] * len(saved)
    highest = max(site.rank for each in saved for site in each.sites)
    options = combine.Options(tuple(weights), rank or highest, density, seed)
    made = layer_by_layer(saved, model, how, options)
    attached = attach_sites(
        model, [site for site, *_ in made.values()], compose.compose([("lora", {})]), seed=seed, fresh=False
    )
    for name, (_, B, A, _) in made.items():
        attached.modules[name].load({"A": A, "B": B})
    errors = {name: error for name, (*_, error) in made.items()}
    facts = {
        "how": how,
        "adapters": [{"methods": words(each), "weight": w} for each, w in zip(saved, weights, strict=True)],
        "density": density if how in combine.SPARSE else None,
        "errors": errors,
    }
    write(attached, saved[0], base, out, seed, facts)
    ranks = [site.rank for site, *_ in made.values()]
    return CombineResult(len(made), (min(ranks), max(ranks)), errors)


def refuse_apart(saved: Sequence[SavedAdapter], base: Path) -> None:
    """Raises unless all are updates over this base, quantised alike, and nothing beside them would be dropped."""
    for each in saved:
        refuse_other_base(each, base, accepted=False)
        if each.beside.places:
            how = "trained in full" if each.beside.full else "trained beside the adapters"
            raise UsageError(f"{each.folder} holds {', '.join(each.beside.places[:3])}, {how}: not combined")
    kinds = {each.quantization for each in saved}
    if len(kinds) > 1:
        raise UsageError(f"the adapters were trained on bases quantised as {' and '.join(sorted(kinds))}")


@torch.no_grad()
def layer_by_layer(
    saved: Sequence[SavedAdapter], model: nn.Module, how: str, options: combine.Options
) -> dict[str, tuple[Site, Tensor, Tensor, float]]:
    """site name -> (site of the result, B, A, relative error). An adapter without a layer has no part in it."""
    modules = dict(linear.named_linears(model))
    made: dict[str, tuple[Site, Tensor, Tensor, float]] = {}
    for name in dict.fromkeys(site.name for each in saved for site in each.sites):
        updates: list[Factors | Tensor] = []
        parts = []
        for each, weight in zip(saved, options.weights, strict=True):
            site = next((site for site in each.sites if site.name == name), None)
            if site is None:
                continue
            if name not in modules or linear.shape(modules[name]) != (site.d, site.k):
                raise UsageError(f"{each.folder}: the base has no linear layer {name} of {site.d} x {site.k}")
            try:
                updates.append(update_of(each, site, modules[name]))
            except ValueError as error:
                raise UsageError(f"{each.folder}: {error}") from None
            parts.append(weight)
            last = site
        try:
            B, A, lost = combine.WAYS[how](name, updates, replace(options, weights=tuple(parts)))
        except ValueError as error:
            raise UsageError(f"--how {how}: {name}: {error}") from None
        made[name] = (replace(last, rank=len(A), scale=1.0, dropout=0.0, dtype=torch.float32), B, A, lost)
    return made


def write(attached: Any, first: SavedAdapter, base: Path, out: Path, seed: int, facts: Mapping[str, Any]) -> None:
    """The folder, whole or not at all."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in attached.tensors().values())
    info = {"dtype": "float32", **first.info["base"], "fingerprint": fingerprint(base)}
    with files.room_for(out, size), files.scratch_for(out) as scratch:
        beside = [path.name for path in first.folder.iterdir() if goes_along(path) and path.name not in OWN_FILES]
        for name in beside:
            shutil.copyfile(first.folder / name, scratch / name)
            files.sync(scratch / name)
        if first.head is not None:
            first.head.save(scratch)
        storage.save_adapter(attached, scratch, base=info, seed=seed, beside=beside)
        files.write_json(scratch / FACTS, facts)
        scratch.rename(out)
    files.sync(out.parent)
