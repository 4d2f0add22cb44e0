"""Merging into experts: which tensors of the base's files hold the weight of one, and what becomes of them.

The files have a stack as it is, or a tensor for each expert and part (gate and up apart), which transformers stacks and
joins when it loads them (`MergeModulelist`, `Concatenate`). Its own rules say in which order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lrft.adapters.adapter import Adapter, Delta, Site
from lrft.adapters.storage import SavedAdapter
from lrft.errors import CheckFailed
from lrft.model.experts import stack_of
from lrft.model.linear import as_rows
from lrft.model.stored import Stored
from lrft.utils.safetensors_stream import TensorReader

STACKING = ("MergeModulelist", "Concatenate")
# A file's tensor -> (its content with the updates, its content before), in at least float32.
Merged = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Part:
    """A tensor of the files that holds rows of one expert's weight (d, k); or, stacked, the weights of all."""

    tensor: str
    stacked: bool = False


def is_expert(site: Site) -> bool:
    return stack_of(site.name) is not None


def parts_of(site: Site, stored: Stored) -> list[Part]:
    """The tensors that one expert's weight is made of, in the order of its rows. Raises CheckFailed where it is made in
    another way."""
    found = stack_of(site.name)
    assert found is not None
    module, word, expert = found
    stack = f"{module}.{word}"
    source = stored.source(stack)
    if source is None:
        raise CheckFailed(f"the base's files have no tensor for {stack}: it is stored under other names")
    if source.as_it_is:
        return [Part(source.tensors[0], stacked=True)]
    rule = next(
        (rule for rule in stored.converters if any(stack.endswith(p.removeprefix(".")) for p in rule.target_patterns)),
        None,
    )
    steps = [] if rule is None else [type(step).__name__ for step in rule.operations]
    if rule is None or not set(steps) <= set(STACKING):
        raise CheckFailed(
            f"transformers builds {stack} of the base's files by {', '.join(steps) or 'rules of its own'}"
        )
    mine = [name for name in source.tensors if number_in(name) == expert]
    endings = [pattern.rpartition("*")[2] for pattern in rule.source_patterns]
    ordered = [name for ending in endings for name in mine if name.endswith(ending)]
    if len(ordered) != len(endings):
        raise CheckFailed(
            f"the base's files have {len(ordered)} tensors for {site.name}, and {len(endings)} are wanted"
        )
    return [Part(name) for name in ordered]


def number_in(tensor: str) -> int | None:
    """The expert's number in the name of a tensor: the last one."""
    found = re.findall(r"\.(\d+)\.", tensor)
    return int(found[-1]) if found else None


def weight_of_expert(site: Site, parts: Sequence[Part], tensor: Callable[[str], Tensor]) -> Tensor:
    """W0 (d, k) in the adapter's dtype. tensor: gives a tensor of the files by its name. Raises CheckFailed where its
    shape is not the site's."""
    expert = int(site.name.rpartition(".")[2])
    if parts[0].stacked:
        weight = as_rows(tensor(parts[0].tensor)[expert], site.transposed)
    else:
        weight = torch.cat([tensor(part.tensor) for part in parts])
    if weight.shape != (site.d, site.k):
        raise CheckFailed(f"{site.name} is {tuple(weight.shape)} in the base, {site.d} x {site.k} in the adapter")
    return weight.to(site.dtype)


def merged_experts(saved: SavedAdapter, stored: Stored, weights: Sequence[Path]) -> dict[str, Merged]:
    """What becomes of each tensor of the files that holds adapted experts, by its name. weights: the files."""
    where: dict[str, Path] = {}
    for path in weights:
        with TensorReader(path) as reader:
            where |= dict.fromkeys(reader.entries, path)

    def tensor(name: str) -> Tensor:
        with TensorReader(where[name]) as reader:
            return reader.tensor(name)

    made: dict[str, Merged] = {}
    together: dict[str, list[Site]] = {}
    for site in filter(is_expert, saved.sites):
        parts = parts_of(site, stored)
        if parts[0].stacked:
            together.setdefault(parts[0].tensor, []).append(site)
            continue
        for at, part in enumerate(parts):
            made[part.tensor] = partial(part_merged, saved, site, parts, at, tensor)
    return made | {name: partial(stack_merged, saved, sites, name, tensor) for name, sites in together.items()}


@torch.no_grad()
def part_merged(
    saved: SavedAdapter, site: Site, parts: Sequence[Part], at: int, tensor: Callable[[str], Tensor]
) -> tuple[Tensor, Tensor]:
    """One of the parts of an expert's weight, merged and before."""
    before = weight_of_expert(site, parts, tensor)
    sizes = [len(tensor(part.tensor)) for part in parts]
    exact = with_update(saved.build(site), before)
    return exact.split(sizes)[at], before.split(sizes)[at]


@torch.no_grad()
def stack_merged(
    saved: SavedAdapter, sites: Iterable[Site], name: str, tensor: Callable[[str], Tensor]
) -> tuple[Tensor, Tensor]:
    """A whole stack, merged and before, as it is stored."""
    stack = tensor(name)
    exact = stack.to(torch.promote_types(stack.dtype, torch.float32), copy=True)
    before = exact.clone()
    for site in sites:
        weight = with_update(saved.build(site), weight_of_expert(site, [Part(name, True)], lambda _: stack))
        exact[int(site.name.rpartition(".")[2])] = as_rows(weight, site.transposed)
    return exact, before


def with_update(adapter: Adapter, before: Tensor) -> Tensor:
    """The adapted weight (d, k) of W0 (d, k)."""
    return before + adapter.delta_weight() if isinstance(adapter, Delta) else adapter.weight(before)


def readable(sites: Iterable[Site], stored: Stored, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises CheckFailed for an expert whose weight cannot be written back. shapes: of the files' tensors."""
    for site in filter(is_expert, sites):
        for part in parts_of(site, stored):
            if part.tensor not in shapes:
                raise CheckFailed(f"the base's files have no tensor {part.tensor}")
