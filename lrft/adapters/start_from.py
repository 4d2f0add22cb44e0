"""Start from a saved adapter: its own tensors, or its update as the pair of a LoRA of another rank or method."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lrft.adapters import compose
from lrft.adapters.adapter import Adapter, Delta, Factors, Site, load_tensors
from lrft.adapters.attached import SHARED, Attached
from lrft.adapters.beside import rows_in
from lrft.adapters.modules_to_save import TokenRows
from lrft.adapters.storage import SavedAdapter
from lrft.adapters.updates import joined, thin, update_of, words
from lrft.utils.text import count


@dataclass(frozen=True)
class Started:
    """What a start took over. error: the largest relative error of an update, in the module `worst`."""

    modules: int
    fresh: tuple[str, ...]
    """modules of this run that the saved adapter does not have: they keep their own init"""
    as_it_is: bool
    """its tensors were taken, not its update"""
    error: float
    worst: str

    def __str__(self) -> str:
        what, form = ("tensors", "") if self.as_it_is else ("updates", ", as pairs B A")
        parts = [f"started from the {what} of {count(self.modules, 'module')}{form}"]
        if self.error > 0:
            parts.append(f"largest relative error {self.error:.2%} in {self.worst}")
        if self.fresh:
            more = f" and {len(self.fresh) - 3} more" * (len(self.fresh) > 3)
            parts.append(f"not in it, with their own init: {', '.join(self.fresh[:3])}{more}")
        return "; ".join(parts)


@torch.no_grad()
def start_from(attached: Attached, saved: SavedAdapter) -> Started:
    """Give initialised adapters the values of `saved`, an adapter over the same base.

    The tensors where methods, options, ranks and factors are the same. Else the update of each module as a pair: exact
    up to this run's rank, where the rest of A keeps its init beside zeros of B; by its leading singular triplets above.
    Raises ValueError for what would be dropped, and for a method whose update is no plain pair.
    """
    sites = {site.name: site for site in saved.sites}
    if dropped := [name for name in sites if name not in attached.modules]:
        more = f" and {len(dropped) - 3} more" * (len(dropped) > 3)
        raise ValueError(
            f"it adapts {', '.join(dropped[:3])}{more}, which adapter.target_modules does not choose: its update would "
            f"be dropped"
        )
    take_beside(attached, saved)
    own = {site.name: site for site in attached.sites}
    fresh = tuple(name for name in own if name not in sites)
    if not sites or (
        is_alike(attached, saved) and all(alike(attached.modules[name], saved, sites[name]) for name in sites)
    ):
        take_tensors(attached, saved)
        return Started(len(sites), fresh, True, 0.0, "")
    errors = {name: take_update(attached, saved, own[name], sites[name]) for name in sites}
    worst = max(errors, key=lambda name: errors[name])
    return Started(len(sites), fresh, False, errors[worst], worst)


def is_alike(attached: Attached, saved: SavedAdapter) -> bool:
    """Whether both are of the same methods with the same options. A folder of PEFT names those that its type has."""
    entries = [dict(entry) for entry in attached.methods]
    if "format" in saved.info:
        return entries == [dict(entry) for entry in saved.composition.entries]
    there = [(entry["name"], entry["options"]) for entry in saved.info["methods"]]
    if [entry["name"] for entry in entries] != [name for name, _ in there]:
        return False
    parts = {part.name: part for part in compose.compose((e["name"], e["options"]) for e in entries).parts}
    return all(getattr(parts[name], option) == value for name, said in there for option, value in said.items())


def alike(adapter: Adapter, saved: SavedAdapter, site: Site) -> bool:
    """Whether the tensors of an adapter at `site` mean the same here. A rank that no tensor has is none."""
    own = adapter.site
    given = {name: tensor.shape for name, tensor in saved.tensors[site.name].items()}
    same = given == {name: tensor.shape for name, tensor in adapter.tensors().items()}
    rank = own.rank if "format" not in saved.info and same else site.rank
    like = replace(own, dropout=site.dropout, transposed=site.transposed, dtype=site.dtype, depth=site.depth)
    return like == replace(site, rank=rank)


def take_tensors(attached: Attached, saved: SavedAdapter) -> None:
    for site in saved.sites:
        attached.modules[site.name].load(saved.tensors[site.name])
    if attached.shared is not None:
        load_tensors(SHARED, dict(attached.shared.named_parameters()), saved.tensors.get(SHARED, {}))


def take_beside(attached: Attached, saved: SavedAdapter) -> None:
    """What was trained beside the adapters. Raises ValueError unless this run trains it too."""
    own, its = attached.beside.by_place, saved.beside
    for place in its.places:
        module = own.get(place)
        if module is None:
            how = "trained in full" if place in its.full else "trained"
            raise ValueError(f"it holds {place}, {how}, which this run does not train: it would be dropped")
        if place not in its.rows or not isinstance(module, TokenRows):
            load_tensors(place, dict(module.named_parameters()), saved.tensors[place])
            continue
        rows = rows_in(saved.tensors[place], its.rows[place])
        if lacking := [i for i in rows if i not in module.ids]:
            raise ValueError(
                f"it holds row {lacking[0]} of {place}, which this run does not train: it would be dropped"
            )
        for at, number in enumerate(module.ids):
            if number in rows:
                module.rows[at] = rows[number]


def take_update(attached: Attached, saved: SavedAdapter, own: Site, site: Site) -> float:
    """Write the saved update of one module into its pair. Returns the relative error."""
    pair = own_pair(attached.modules[own.name])
    if pair is None:
        raise ValueError(
            f"it was trained with {words(saved)}, and {joined(attached.methods)} does not hold an update as a pair B A "
            f"alone: use the method, rank and options of that adapter, or lora"
        )
    update = update_of(saved, site, attached.layers()[site.name].base)
    B, A, error = thin(update, pair.A.shape[0], own.name)
    n = A.shape[0]
    pair.A[:n] = A
    pair.B[:, :n] = B / pair.scale
    if pair.A[n:].any():  # where the rest of A is zero, that of B may keep its init
        pair.B[:, n:] = 0
    return error


def own_pair(adapter: Adapter) -> Factors | None:
    """The tensors A and B of an adapter whose update is s B A and nothing else."""
    factors = adapter.factors() if isinstance(adapter, Delta) else None
    tensors = adapter.tensors()
    if factors is None or not tensors.keys() >= {"A", "B"}:
        return None
    A, B = tensors["A"], tensors["B"]
    same = factors.A.shape == A.shape and factors.B.shape == B.shape
    return Factors(B, A, factors.scale) if same and torch.equal(factors.A, A) and torch.equal(factors.B, B) else None
