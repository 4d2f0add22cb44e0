"""Adapters in a model: target layers selected, calibrated, built, initialised and put in place.

The order for one site is fixed here, not by the list in the recipe: build -> start, start_from -> anchor -> wrap.
(A start after wrapping would look for A and B inside the wrapper.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lrft import registry
from lrft.adapters import beside, targets
from lrft.adapters.adapter import Adapter, AdapterLinear, Delta, OffsetFromInit, Site
from lrft.adapters.attached import SHARED, Attached
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.compose import SAID_SHARE, Composition, compose
from lrft.adapters.part import CalibrationResult
from lrft.errors import Problem, RecipeError, UsageError
from lrft.model import linear
from lrft.model.experts import stack_of, stacks
from lrft.model.head import head_modules
from lrft.model.invocation import Invocation
from lrft.model.quantized import is_quantized
from lrft.utils.drawing import begin_drawing
from lrft.utils.seeds import seed_of

Built = TypeVar("Built", bound=nn.Module)


def refuse_adapted(model: nn.Module) -> None:
    """Raises UsageError for a model with adapters: a second attach would freeze the first and go inside it."""
    if any(isinstance(module, AdapterLinear) for module in model.modules()):
        raise UsageError("this model already has adapters", "Remove them first with detach().")


def refuse_quantized(composition: Composition, where: targets.Where) -> None:
    """Raises RecipeError for parts that make no sense over a quantised base. (A recipe that says so is refused before:
    this is for bases that are stored so, and for models that are given.)"""
    problems = [
        Problem(
            where("adapter.method"), f"adapter.method: {registry.over_quantized(part.name, part.quantization_conflict)}"
        )
        for part in composition.parts
        if part.quantization_conflict
    ]
    if problems:
        raise RecipeError(problems)


def prune_base(model: nn.Module, composition: Composition, where: targets.Where = lambda key: key) -> None:
    """Let the parts prune the base that is to be trained on, in place, before it has adapters. Raises RecipeError."""
    refuse_adapted(model)
    if is_quantized(model):
        refuse_quantized(composition, where)
    for part in composition.parts:
        try:
            part.prune_base(model)
        except ValueError as error:
            text = f"adapter.method: {part.name}: {error}"
            raise RecipeError([Problem(where("adapter.method"), text)]) from error


def select_sites(
    model: nn.Module,
    adapter: Any,
    composition: Composition,
    where: targets.Where,
    uncalled: Mapping[str, str] = {},
) -> list[Site]:
    """The sites of a recipe's adapter section on `model`, with their ranks and factors. Raises RecipeError.

    uncalled: names of layers that text is known not to reach -> why, as of `lrft.adapters.reach.uncalled`
    """
    refuse_adapted(model)
    if is_quantized(model):
        refuse_quantized(composition, where)
    found = targets.chosen_linears(model, adapter, where, uncalled)
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
        sites = part.assign_ranks(sites)
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


def calibrate(
    sites: Sequence[Site],
    composition: Composition,
    context: CalibrationContext,
    where: targets.Where = lambda key: key,
) -> tuple[list[Site], list[CalibrationResult]]:
    """The sites that follow from what the parts see of the data, and what each part has seen.

    Raises RecipeError when a part wants to look and there is nothing to look at, or nothing that it can use.
    """
    seen: dict[str, CalibrationResult] = {}
    # First the layers, then the ranks that are shared out among those that stay, then starts of those ranks.
    for part in sorted(composition.parts, key=lambda part: ("placement" not in part.slots, "ranks" not in part.slots)):
        context.sites = sites
        try:
            seen[part.name] = part.calibrate(context)
        except ValueError as error:
            raise RecipeError([Problem(where("adapter.method"), f"adapter.method: {part.name}: {error}")]) from error
        sites = part.assign_ranks_from(sites, seen[part.name])
        # Ranks are shapes, and a decomposition may round otherwise on another machine: the first process decides.
        sites = context.agree(list(sites)) if composition.calibrates else list(sites)
    return list(sites), [seen[part.name] for part in composition.parts]


def build_site(
    site: Site,
    composition: Composition,
    W0: Tensor | None,
    *,
    fresh: bool,
    seed: int = 0,
    shared: nn.Module | None = None,
    seen: Sequence[CalibrationResult] | None = None,
) -> Adapter:
    """One adapter. `fresh` sets its start from W0 (d, k); otherwise only the structure is made, to be loaded.

    Random values depend on (seed, the site's name) alone and leave the global generator as it was.
    Raises ValueError with the reason when the site's shape does not fit.
    """
    # A decomposition on a GPU draws from the generator of the GPU that W0 lies on.
    gpu = [W0.device] if W0 is not None and W0.is_cuda else []
    with torch.random.fork_rng(devices=gpu):
        begin_drawing(seed_of(seed, site.name), gpu=bool(gpu))
        adapter = composition.method.build(site)
        adapter.share(shared)
        if fresh and W0 is not None:
            with torch.no_grad():
                for part, found in zip(composition.parts, seen or [{} for _ in composition.parts], strict=True):
                    part.initialize(adapter, W0)
                    if site.name in found:
                        part.initialize_from(adapter, W0, found[site.name])
    if composition.offset_from_init:
        if not isinstance(adapter, Delta):
            raise TypeError(f"{composition.method.name} declares `provides: delta` but builds an adapter without one")
        adapter = OffsetFromInit(adapter)
    # What freezes the update and begins it anew lies inside of what changes the whole of it.
    for part in sorted(composition.parts, key=lambda part: "restart" not in part.slots):
        adapter = part.wrap(adapter, W0)
    adapter.share(shared)  # the wrappers too
    return adapter


def rebuild_site(site: Site, restart: int, *, composition: Composition, seed: int) -> Adapter:
    """The method's own adapter for a site as restart n >= 1 begins with it, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        begin_drawing(seed_of(seed, site.name, restart))
        return composition.method.rebuild(site, restart)


def build_shared(sites: Sequence[Site], composition: Composition, *, seed: int = 0) -> nn.Module | None:
    """What the adapters have in common. Raises ValueError when the sites' shapes do not go together."""
    with torch.random.fork_rng(devices=[]):
        begin_drawing(seed_of(seed, SHARED))
        return composition.method.shared(sites)


def attach_sites(
    model: nn.Module,
    sites: Sequence[Site],
    composition: Composition,
    *,
    seed: int,
    fresh: bool = True,
    seen: Sequence[CalibrationResult] | None = None,
    where: targets.Where = lambda key: key,
    names: beside.NamesBeside | None = None,
) -> Attached:
    """Freeze `model`, put an adapter beside each site's layer, and what `names` says beside other modules; None: a
    trained copy beside its head. Raises RecipeError."""
    modules = dict(model.named_modules())
    adapters: dict[str, Adapter] = {}
    problems = []
    shared = None
    try:
        shared = build_shared(sites, composition, seed=seed)
    except ValueError as error:
        raise RecipeError([Problem(where("adapter.rank"), f"adapter: {error}")]) from None
    if shared is not None:
        shared = _beside(modules[sites[0].name], shared)
    for site in sites:
        base = modules[site.name]
        try:
            # The start is computed where the weight lies: a decomposition of a large layer wants the GPU.
            W0 = linear.dense(base).to(site.dtype) if composition.reads_weights else None
            adapter = build_site(site, composition, W0, fresh=fresh, seed=seed, shared=shared, seen=seen)
        except ValueError as error:
            problems.append(Problem(where("adapter.rank"), f"adapter: {site.name}: {error}"))
        else:
            adapters[site.name] = _beside(base, adapter)
    if problems:
        raise RecipeError(problems)
    model.requires_grad_(False)
    layers = {name: AdapterLinear(modules[name], adapter) for name, adapter in adapters.items()}
    put = beside.make(model, names or beside.NamesBeside(tuple(head_modules(model))), layers)
    for name, layer in layers.items():
        _put(model, name, layer)
    beside.put_in(model, put)
    if shared is not None:
        # In the first adapted layer: the model itself may be a container that calls whatever it holds.
        model.get_submodule(sites[0].name).add_module(SHARED, shared.train(model.training))
        if isinstance(shared, Invocation):
            watch(model, shared, sites, where)
    return Attached(model, adapters, composition.entries, list(sites), shared, put)


def watch(model: nn.Module, invocation: Invocation, sites: Sequence[Site], where: targets.Where) -> None:
    """Let `invocation` look at each pass through `model`. Raises RecipeError for layers that do not get all tokens of
    a pass, as many and in their order."""
    try:
        if head_modules(model):
            raise ValueError("it acts in language models, and this one has another head")
        invocation.watch(model)
        before = targets.decoder_prefix(model)
        if odd := [s.name for s in sites if not s.name.startswith(before) or stack_of(s.name) is not None]:
            raise ValueError(f"{odd[0]} does not get each token of a row: leave it out with adapter.exclude_modules")
    except ValueError as error:
        raise RecipeError([Problem(where("adapter.method"), f"adapter.method: {error}")]) from None


def attach_adapter(
    model: nn.Module,
    adapter: Any,
    *,
    seed: int,
    where: targets.Where = lambda key: key,
    context: CalibrationContext | None = None,
    uncalled: Mapping[str, str] = {},
    tokens: Sequence[int] = (),
    tokenizer: Any = None,
) -> tuple[Attached, Composition]:
    """Attach what a recipe's adapter section describes. tokens: ids whose rows of the embedding are trained.
    tokenizer: of options that name text."""
    composition = composed_with(adapter, tokenizer, where)
    planned = select_sites(model, adapter, composition, where, uncalled)
    sites, seen = calibrate(planned, composition, context or CalibrationContext(model, seed=seed), where)
    names = beside.names_for(model, adapter, [site.name for site in sites], where, tokens)
    return attach_sites(model, sites, composition, seed=seed, seen=seen, where=where, names=names), composition


def composed_with(adapter: Any, tokenizer: Any, where: targets.Where = lambda key: key) -> Composition:
    """The composition of a recipe's adapter section, token ids in the place of text. Raises RecipeError."""
    try:
        composition = compose((entry.name, entry.options) for entry in adapter.method)
        return composition.with_tokenizer(tokenizer)
    except ValueError as error:
        raise RecipeError([Problem(where("adapter.method"), f"adapter.method: {error}")]) from None


def composition_warnings(composition: Composition, sites: Sequence[Site], model: nn.Module) -> list[str]:
    """What the parts have to say about their own combination, and what of the model no adapter can reach."""
    said = [text for part in composition.parts for text in part.advice(sites, composition.offset_from_init)]
    said += [text for part in composition.parts for text in part.base_advice(model)]
    share = targets.stacked_share(model)
    if share >= SAID_SHARE:
        names = dict.fromkeys(".".join(name.split(".")[-2:]) for name in targets.outside_linears(model))
        said.append(
            f"{share:.0%} of the model's parameters are outside linear layers and get no adapter: {', '.join(names)}"
            + f"; {targets.EXPERT_LINEAR} in adapter.target_modules means all experts" * bool(stacks(model))
        )
    return said


def rows_warnings(composition: Composition, rows: Any, where: targets.Where) -> list[str]:
    """What the parts have to say about the training rows (`lrft.data.Rows`). Raises RecipeError."""
    try:
        return [text for part in composition.parts for text in part.rows_advice(rows)]
    except ValueError as error:
        raise RecipeError([Problem(where("adapter.method"), f"adapter.method: {error}")]) from None


def count_trained(sites: Sequence[Site], composition: Composition, where: targets.Where = lambda key: key) -> int:
    """How many numbers would be trained. Builds one adapter of each shape, without a model. Raises RecipeError."""
    problems = []
    try:
        shared = build_shared(sites, composition)
    except ValueError as error:
        raise RecipeError([Problem(where("adapter.rank"), f"adapter: {error}")]) from None
    total = trained_in(shared)
    known: dict[Site, int] = {}
    for site in sites:
        shape = replace(site, name="", depth=None)
        try:
            if shape not in known:
                known[shape] = trained_in(build_site(site, composition, None, fresh=False, shared=shared))
        except ValueError as error:
            problems.append(Problem(where("adapter.rank"), f"adapter: {site.name}: {error}"))
        else:
            total += known[shape]
    if problems:
        raise RecipeError(problems)
    return total


def trained_in(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.requires_grad)


def _beside(base: nn.Module, built: Built) -> Built:
    """What was built on the CPU on the device of `base`. (Tensors without content cannot be asked to stay.)"""
    device = next(base.parameters()).device
    return built if device.type == "cpu" else built.to(device)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, word = name.rpartition(".")
    setattr(model.get_submodule(parent), word, module)
