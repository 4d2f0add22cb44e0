"""From the words of a recipe to adapters in a model.

The order inside one site is fixed here, not by the list in the recipe: build -> start -> anchor -> wrap. (A start after
wrapping would look for A and B inside the wrapper.)
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrft import catalog
from lrft.core import linear, targets
from lrft.core.adapter import Adapter, AdapterLinear, Anchored, Delta, Site
from lrft.core.attached import Attached
from lrft.core.part import Method, Part
from lrft.errors import Problem, RecipeError, UsageError


@dataclass(frozen=True)
class Composition:
    """The parts of a run: exactly one builds adapters. `words` are the recipe's entries, ready for JSON."""

    method: Method
    parts: tuple[Part, ...]
    words: tuple[dict[str, Any], ...]

    @property
    def anchored(self) -> bool:
        return any(part.anchored for part in self.parts)

    @property
    def reads_weights(self) -> bool:
        """Whether some part looks at the base's weights before the first step: a wide copy is made only then."""
        return any(type(p).start is not Part.start or type(p).wrap is not Part.wrap for p in self.parts)

    @property
    def scale_owner(self) -> Part | None:
        """Who turns alpha into the factor s: the part that fills the slot, else a method that has one, else nobody."""
        filled = next((part for part in self.parts if "scale" in part.fills), None)
        return filled or (self.method if "scale" in self.method.gives else None)

    @property
    def resting(self) -> set[str]:
        """Last words of trained tensors that may stand still in the first steps."""
        return {role for part in self.parts for role in part.resting}

    def lr_factors(self) -> dict[str, float]:
        """Learning rate over the recipe's, by role."""
        factors: dict[str, float] = {}
        for part in self.parts:
            for role, factor in part.lr_factors().items():
                factors[role] = factors.get(role, 1.0) * factor
        return factors


def compose(entries: Iterable[tuple[str, dict[str, Any]]]) -> Composition:
    """The parts named by `entries` (name, options), already checked by the recipe; lora builds when none does."""
    options = dict(entries)
    cards = catalog.methods()
    parts: list[Part] = []
    for name in catalog.compose(list(options)):
        card = cards[name]
        cls = getattr(importlib.import_module(card.module), card.class_name)
        parts.append(cls(**options.get(name, {})))
    method = parts[0]
    if not isinstance(method, Method):
        raise TypeError(f"{method.name} is declared to build adapters but is no Method")
    words = tuple({"name": part.name, "options": options.get(part.name, {})} for part in parts)
    return Composition(method, tuple(parts), words)


def refuse_adapted(model: nn.Module) -> None:
    """Raises UsageError for a model with adapters: a second attach would freeze the first and go inside it."""
    if any(isinstance(module, AdapterLinear) for module in model.modules()):
        raise UsageError("this model has adapters already", "Take them away first, with detach().")


def plan(model: nn.Module, adapter: Any, composition: Composition, where: targets.Where) -> list[Site]:
    """The sites of a recipe's adapter section on `model`, with their ranks and factors. Raises RecipeError."""
    refuse_adapted(model)
    found = targets.chosen_linears(model, adapter, where)
    problems = [
        Problem(where("adapter.overrides"), f"adapter.overrides: {pattern} matches no adapted layer")
        for pattern in adapter.overrides
        if not any(targets.matches(pattern, name) for name in found)
    ]
    if problems:
        raise RecipeError(problems)
    sites = []
    for name, module in found.items():
        rank, alpha, scale = adapter.rank, adapter.alpha, adapter.scale
        for pattern, override in adapter.overrides.items():
            if targets.matches(pattern, name):
                rank = override.rank or rank
                if override.alpha is not None:
                    alpha, scale = override.alpha, None
                if override.scale is not None:
                    scale = override.scale
        factor = factor_of(composition, rank, alpha, scale)
        sites.append(targets.site_of(name, module, rank=rank, scale=factor, dropout=adapter.dropout))
    for part in composition.parts:
        sites = part.plan(sites)
    return sites


def factor_of(composition: Composition, rank: int, alpha: float | str, scale: float | None) -> float:
    """The factor s on the update of a site of `rank`."""
    owner = composition.scale_owner
    if owner is None:
        return 1.0
    if scale is not None:
        return scale
    natural = next((p.natural_scale for p in composition.parts if p.natural_scale is not None), None)
    if alpha == "auto":
        return natural if natural is not None else owner.scale(owner.alpha(rank), rank)
    return owner.scale(float(alpha), rank)


def build_site(site: Site, composition: Composition, W0: Tensor | None, *, fresh: bool, seed: int = 0) -> Adapter:
    """One adapter. `fresh` sets its start from W0 (d, k); otherwise only the structure is made, to be loaded.

    Random values depend on (seed, the site's name) alone and leave the global generator as it was.
    Raises ValueError with the reason when the site's shape does not fit.
    """
    # manual_seed also sets the generator of the GPU that W0 lies on, and a decomposition there draws from it.
    gpu = [W0.device] if W0 is not None and W0.is_cuda else []
    with torch.random.fork_rng(devices=gpu):
        torch.manual_seed(seed_of(seed, site.name))
        adapter = composition.method.build(site)
        if fresh and W0 is not None:
            with torch.no_grad():
                for part in composition.parts:
                    part.start(adapter, W0)
    if composition.anchored:
        if not isinstance(adapter, Delta):
            raise TypeError(f"{composition.method.name} is declared to give a delta but does not")
        adapter = Anchored(adapter)
    for part in composition.parts:
        adapter = part.wrap(adapter, W0)
    return adapter


def seed_of(seed: int, *words: object) -> int:
    """A 63-bit seed for one purpose: the same everywhere, whatever was drawn before."""
    digest = hashlib.sha256(repr((seed, *words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def attach_sites(
    model: nn.Module,
    sites: Sequence[Site],
    composition: Composition,
    *,
    seed: int,
    fresh: bool = True,
    where: targets.Where = lambda key: key,
) -> Attached:
    """Freeze `model`, put an adapter beside each site's layer, and return the handle. Raises RecipeError."""
    modules = dict(model.named_modules())
    adapters: dict[str, Adapter] = {}
    problems = []
    for site in sites:
        base = modules[site.name]
        try:
            # The start is computed where the weight lies: a decomposition of a large layer wants the GPU.
            W0 = linear.dense(base).to(site.dtype) if composition.reads_weights else None
            adapters[site.name] = build_site(site, composition, W0, fresh=fresh, seed=seed).to(base.weight.device)
        except ValueError as error:
            problems.append(Problem(where("adapter.rank"), f"adapter: {site.name}: {error}"))
    if problems:
        raise RecipeError(problems)
    model.requires_grad_(False)
    for name, adapter in adapters.items():
        _put(model, name, AdapterLinear(modules[name], adapter))
    return Attached(model, adapters, composition.words, list(sites))


def attach_adapter(
    model: nn.Module, adapter: Any, *, seed: int, where: targets.Where = lambda key: key
) -> tuple[Attached, Composition]:
    """Attach what a recipe's adapter section describes."""
    composition = compose((entry.name, entry.options) for entry in adapter.method)
    sites = plan(model, adapter, composition, where)
    return attach_sites(model, sites, composition, seed=seed, where=where), composition


def advice(composition: Composition, sites: Sequence[Site], model: nn.Module) -> list[str]:
    """What the parts have to say about their own combination, and what of the model no adapter can reach."""
    said = [text for part in composition.parts for text in part.advice(sites, composition.anchored)]
    share = targets.stacked_share(model)
    if share > 0:
        said.append(
            f"{share:.0%} of the model are stacked tensors (experts), which are not linear layers: left as they are"
        )
    return said


def count_trained(sites: Sequence[Site], composition: Composition, where: targets.Where = lambda key: key) -> int:
    """How many numbers would be trained. Builds one adapter at a time, without a model. Raises RecipeError."""
    total = 0
    problems = []
    for site in sites:
        try:
            adapter = build_site(site, composition, None, fresh=False)
        except ValueError as error:
            problems.append(Problem(where("adapter.rank"), f"adapter: {site.name}: {error}"))
        else:
            total += sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    if problems:
        raise RecipeError(problems)
    return total


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, word = name.rpartition(".")
    setattr(model.get_submodule(parent), word, module)
