"""The model of a recipe with its adapters, of fake tensors: what its shapes say of sizes and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrft.adapters import compose
from lrft.adapters.adapter import Adapter, AdapterLinear
from lrft.adapters.attach import attach_sites, prune_base, select_sites, trained_in
from lrft.adapters.beside import names_for
from lrft.adapters.modules_to_save import SavedModule
from lrft.adapters.reach import uncalled
from lrft.adapters.unfit import is_in
from lrft.distributed import fsdp
from lrft.errors import LrftError
from lrft.loading.from_recipe import added_by, made, sketched_head, tokens_for
from lrft.loading.others import Found
from lrft.model import linear
from lrft.model.experts import word_of
from lrft.model.layers import blocks_of, decoder_of
from lrft.model.load import imagine_quantized
from lrft.model.quantized import count
from lrft.optim.base import Optimizer
from lrft.planning import activation_memory
from lrft.recipe import Recipe
from lrft.utils import hardware


@dataclass(frozen=True)
class Imagined:
    """What is known of the adapted model from its shapes alone."""

    modules: list[dict[str, Any]]
    """by last word: layers, d, k, trained"""
    parameters: int
    trained: int
    matrix: int
    """weights of its linear layers that are called"""
    blocks: int
    outside: int
    """bytes of the base outside of the blocks"""
    weights: int
    """bytes of the base"""
    adapter: int
    """bytes of the adapters' tensors"""
    gradients: int
    """bytes of the gradients that are kept until the step"""
    state: int
    """bytes of the optimiser's state"""
    copies: int
    """of each row, side by side"""
    micro: int
    """rows of a pass"""
    largest: int
    """tokens of the largest micro-batch"""
    kept: Any
    """activations of its pass (`activation_memory`)"""


def imagined(recipe: Recipe, source: Path, labels: Sequence[str] = ()) -> AbstractContextManager[Any]:
    """The recipe's base in `source`, of fake tensors, in the number format in which it would be frozen.

    labels: that its head tells apart, where it has one.
    """
    compute = hardware.computation(recipe.training.precision)
    return imagine_quantized(
        source,
        dtype=hardware.DTYPES[hardware.frozen_dtype(recipe.model.precision, compute)],
        quantization=recipe.model.quantization,
        trust_remote_code=recipe.model.trust_remote_code,
        head=sketched_head(recipe, labels),
        added=added_by(recipe, source),
    )


def imagine_adapted(
    recipe: Recipe,
    source: Path,
    composition: compose.Composition,
    longest: Sequence[int],
    micro: int,
    active: torch.dtype,
    labels: Sequence[str] = (),
) -> Imagined:
    """The recipe's model with its adapters, of fake tensors.

    longest: tokens of each sequence of the largest micro-batch of `micro` rows, in one copy. active: in which it
    computes. labels: of the data.
    """
    with imagined(recipe, source, labels) as model:
        parameters = count(model)
        prune_base(model, composition, recipe.where)
        try:
            within = fsdp.within_blocks(model)
        except NotImplementedError as error:  # transformers knows no embedding of its text
            sentence = str(error).partition(". ")[0].partition("; ")[0]
            raise LrftError(f"{type(model).__name__} cannot answer text alone: {sentence}") from error
        outside = sum(p.numel() * p.element_size() for p in model.parameters() if p not in within)
        passed_over = uncalled(model)
        sites = select_sites(model, recipe.adapter, composition, recipe.where, passed_over)
        tokens = tokens_for(recipe, source)
        names = names_for(model, recipe.adapter, [site.name for site in sites], recipe.where, tokens)
        attached = attach_sites(model, sites, composition, seed=0, fresh=False, where=recipe.where, names=names)
        model.train()
        copies = max(adapter.copies for adapter in attached.modules.values())
        kept = activation_memory.activations(
            model,
            activation_memory.Batch(
                [*longest] * copies, active, hardware.device().type, packed=recipe.data.packing is not False
            ),
            kind=recipe.training.gradient_checkpointing,
        )
        adapter = sum(p.numel() * p.element_size() for p in attached.tensors().values())
        used = (module for name, module in linear.named_linears(model) if name not in passed_over)
        return Imagined(
            modules=by_module(model),
            parameters=parameters,
            trained=sum(p.numel() for p in attached.trained().values()),
            matrix=sum(d * k for d, k in map(linear.shape, used)),
            blocks=len(blocks_of(decoder_of(model))),
            outside=outside,
            weights=sum(p.numel() * p.element_size() for p in model.parameters()) - adapter,
            adapter=adapter,
            gradients=gradient_bytes(composition, attached),
            state=optimizer_bytes(composition, attached, made(recipe.training.optimizer, "optimizers")),
            copies=copies,
            micro=micro,
            largest=copies * sum(longest),
            kept=kept,
        )


def weigh(recipe: Recipe, other: Found, matrix: int) -> tuple[int, int]:
    """(bytes of a model that answers beside the trained one and was not loaded for it, weights of its linear layers).

    matrix: the latter of the recipe's base
    """
    if other.is_base:
        tensors = [t for named in other.saved.tensors.values() for t in named.values()] if other.saved else []
        return sum(t.numel() * t.element_size() for t in tensors), matrix
    plain = recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantization": "none"})})
    with imagined(plain, other.folder) as model:
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        return size, sum(d * k for d, k in (linear.shape(module) for _, module in linear.named_linears(model)))


def optimizer_bytes(composition: compose.Composition, attached: Any, optimizer: Optimizer) -> int:
    """What the recipe's optimiser says of each trained tensor; a part that has one, or keeps much, says it."""
    owner = composition.optimizer_owner
    sizes = [(site.d, site.k, site.rank) for site in attached.sites]
    own = sum(4 * part.kept_numbers(*size) for part in composition.parts for size in sizes)
    if owner is None:
        return own + sum(optimizer.state_bytes(p) for p in attached.trained().values())
    return own + sum(4 * owner.optimizer_numbers(*size) for size in sizes)


def gradient_bytes(composition: compose.Composition, attached: Any) -> int:
    """Of all that is trained, unless the optimiser takes gradients as they arrive; then it says what it keeps."""
    owner = composition.optimizer_owner
    if owner is None or not owner.gradients_taken:
        return sum(4 * p.numel() for p in attached.trained().values())
    return sum(4 * owner.gradient_numbers(site.d, site.k, site.rank) for site in attached.sites)


def by_module(model: nn.Module) -> list[dict[str, Any]]:
    """Linear layers by their last word and shape: how many, and what is trained of them or beside them."""
    counted: Counter[tuple[str, int, int]] = Counter()
    trained: Counter[tuple[str, int, int]] = Counter()
    saved = [name for name, module in model.named_modules() if isinstance(module, SavedModule)]
    frozen, in_full = [f"{name}.base" for name in saved], [f"{name}.trained" for name in saved]
    for name, module in model.named_modules():
        if linear.is_linear(module) and not is_in(name, frozen):
            word = word_of(name.removesuffix(".base").removesuffix(".trained"))
            counted[(word, *linear.shape(module))] += 1
            trained[(word, *linear.shape(module))] += trained_in(module) if is_in(name, in_full) else 0
        if isinstance(module, AdapterLinear):
            word = word_of(name)
            adapter: Adapter = module.adapter
            trained[(word, adapter.site.d, adapter.site.k)] += sum(
                p.numel() for p in adapter.parameters() if p.requires_grad
            )
    return [
        {"module": word, "layers": n, "d": d, "k": k, "trained": trained[word, d, k]}
        for (word, d, k), n in counted.items()
    ]
