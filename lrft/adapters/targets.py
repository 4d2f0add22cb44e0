"""Which linear layers a recipe means: patterns to sites. A pattern that matches nothing is an error, never ignored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lrft.adapters.adapter import Adapter, Site
from lrft.errors import Problem, RecipeError, nearest
from lrft.model import linear
from lrft.model.quantized import count

Where = Callable[[str], str]
ALL_LINEAR = "all-linear"


def matches(pattern: str, name: str) -> bool:
    """Whether a module's dotted name is meant by `pattern`.

    "re:X" is a regular expression for the whole name; a pattern with * ? or [ is a glob for the whole name or for its
    end after a dot; any other word is the whole name or its end after a dot.
    """
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    if any(c in pattern for c in "*?["):
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
    return name == pattern or name.endswith(f".{pattern}")


def depth_of(name: str) -> int | None:
    """The block's index: the first number in a dotted name."""
    return next((int(word) for word in name.split(".") if word.isdigit()), None)


def chosen_linears(model: nn.Module, adapter: Any, where: Where) -> dict[str, nn.Module]:
    """The linear layers that `adapter` (a recipe's adapter section) targets, by name, in the model's order.

    Raises RecipeError with every pattern that matches nothing, every layer index outside the model, and every matrix
    that cannot be adapted because it is tied to the embedding.
    """
    linears = dict(linear.named_linears(model))
    problems = [
        *_unmatched(model, linears, adapter.target_modules, where("adapter.target_modules"), "target_modules"),
        *_layers_outside(linears, adapter.layers, where),
    ]
    excludes_given = "exclude_modules" in adapter.model_fields_set
    if excludes_given:
        problems += _unmatched(
            model, linears, adapter.exclude_modules, where("adapter.exclude_modules"), "exclude_modules"
        )
    if problems:
        raise RecipeError(problems)

    head = output_head_names(model, linears)
    decoder = decoder_prefix(model)

    def chosen(name: str) -> bool:
        named = any(p != ALL_LINEAR and matches(p, name) for p in adapter.target_modules)
        everything = ALL_LINEAR in adapter.target_modules and name not in head and name.startswith(decoder)
        excluded = any(matches(p, name) for p in adapter.exclude_modules)
        # lm_head is excluded by default; naming it as a target is a decision against that default.
        kept = not excluded or (named and not excludes_given)
        inside = adapter.layers == "all" or depth_of(name) in adapter.layers
        return (named or everything) and kept and inside

    found = {name: module for name, module in linears.items() if chosen(name)}
    if not found:
        text = "adapter.target_modules, exclude_modules and layers together leave no linear layer to adapt"
        raise RecipeError([Problem(where("adapter.target_modules"), text)])
    _refuse_tied(model, found, where)
    return found


def output_head_names(model: nn.Module, linears: Mapping[str, nn.Module]) -> set[str]:
    """Names of the matrix that makes logits. all-linear leaves it out, as the field does."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    return {name for name, module in linears.items() if module is head}


def decoder_prefix(model: nn.Module) -> str:
    """What the names of the language model's own layers begin with, "" for all of them.

    A model that also sees or hears has towers of linear layers that no text ever reaches: all-linear leaves them out.
    """
    get = getattr(model, "get_decoder", None)
    decoder = get() if get is not None else None
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return f"{name}." if name else ""


def stacked_share(model: nn.Module) -> float:
    """Share of the base's numbers in tensors of three or more dimensions: experts, which no linear layer holds."""
    known = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)}
    ours = {id(p) for m in model.modules() if isinstance(m, Adapter) for p in m.parameters()}
    total = count(model) - sum(p.numel() for p in model.parameters() if id(p) in ours)
    stacked = sum(p.numel() for p in model.parameters() if p.ndim > 2 and id(p) not in known | ours)
    return stacked / total if total else 0.0


def site_of(name: str, module: nn.Module, *, rank: int, scale: float, dropout: float) -> Site:
    d, k = linear.shape(module)
    dtype = torch.float64 if linear.dtype(module) == torch.float64 else torch.float32
    transposed = linear.stored_transposed(module)
    return Site(name, d, k, rank, scale, depth_of(name), dropout, transposed, dtype)


def module_names(names: Iterable[str]) -> list[str]:
    """The last words of module names, sorted: how people call linear layers."""
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _unmatched(
    model: nn.Module, linears: Mapping[str, nn.Module], patterns: Sequence[str], place: str, key: str
) -> list[Problem]:
    problems = []
    for pattern in patterns:
        if pattern == ALL_LINEAR:
            continue
        try:
            if any(matches(pattern, name) for name in linears):
                continue
        except re.error as error:
            problems.append(Problem(place, f"adapter.{key}: {pattern!r} is no regular expression: {error}"))
            continue
        other = next((type(m).__name__ for n, m in model.named_modules() if n and matches(pattern, n)), None)
        words = module_names(linears)
        if other is not None:
            article = "an" if other[0] in "AEIOU" else "a"
            said = f"matches {article} {other}, which is not a linear layer"
        else:
            said = "matches no module of this model"
            close = nearest(pattern, words)
            said += f". Close: {close[0]}" if close else ""
        problems.append(Problem(place, f"adapter.{key}: {pattern} {said}. Linear layers: {', '.join(words)}"))
    return problems


def _layers_outside(linears: Mapping[str, nn.Module], layers: Any, where: Where) -> list[Problem]:
    if layers == "all":
        return []
    depths = {depth for name in linears if (depth := depth_of(name)) is not None}
    outside = sorted(set(layers) - depths)
    if not outside:
        return []
    text = f"adapter.layers: {', '.join(map(str, outside))} not in this model, whose layers are {_span(depths)}"
    return [Problem(where("adapter.layers"), text)]


def _span(depths: set[int]) -> str:
    return f"{min(depths)} to {max(depths)}" if depths else "not numbered"


def _refuse_tied(model: nn.Module, found: Mapping[str, nn.Module], where: Where) -> None:
    """An adapter on a tied matrix would act in one place only, but merge into the other (the embedding) as well.

    Two names inside one parent that is itself used twice are one place.
    """
    places: dict[int, dict[tuple[int, str], str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = _stored_weight(module)
        if weight is not None:
            parent, _, word = name.rpartition(".")
            place = (id(model.get_submodule(parent)), word)
            places.setdefault(id(weight), {}).setdefault(place, name)
    problems = []
    for name, module in found.items():
        others = [other for other in places[id(_stored_weight(module))].values() if other != name]
        if others:
            text = (
                f"adapter.target_modules: {name} shares its weight with {others[0]} in this model; "
                "an adapter on it could not be merged. Leave it out"
            )
            problems.append(Problem(where("adapter.target_modules"), text))
    if problems:
        raise RecipeError(problems)


def _stored_weight(module: nn.Module) -> nn.Parameter | None:
    """What holds a module's weight: itself, or a quantised layer's codes."""
    own = dict(module.named_parameters(recurse=False))
    return own.get("weight", own.get("codes"))
