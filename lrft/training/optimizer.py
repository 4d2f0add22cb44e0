"""The optimiser of a run: the recipe's, or one that a method brings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrft.adapters import compose
from lrft.adapters.attached import SHARED, Attached
from lrft.adapters.modules_to_save import tensors_of
from lrft.adapters.part import Making
from lrft.errors import Problem, RecipeError
from lrft.loading.from_recipe import (
    made,
)
from lrft.optim.groups import Joined, split
from lrft.optim.named_state import grouped
from lrft.recipe import Recipe


def make_optimizer(
    recipe: Recipe, attached: Attached, composition: compose.Composition, broadcast: Callable[[Tensor], Tensor]
) -> torch.optim.Optimizer:
    """The recipe's optimiser; or the one provided by a part for the adapters, and the recipe's for what is trained
    beside them. Raises RecipeError for one that does not take all adapters' tensors."""
    t, owner = recipe.training, composition.optimizer_owner
    by_site = composition.rates_by_site or owner is not None
    owners = attached.owners() if by_site else None
    groups = grouped(
        attached.trained(),
        composition.lr_factors(),
        t.learning_rate,
        t.weight_decay,
        owners=owners,
        undecayed=attached.undecayed(),
    )
    if owner is None:
        optimizer: torch.optim.Optimizer = made(t.optimizer, "optimizers").make(groups)
        return optimizer
    ranks = {site.name: site.rank for site in attached.sites}
    ranks[SHARED] = max(ranks.values())
    others = set(tensors_of(attached.beside.by_place))
    beside, own = split(groups, lambda name, _: name in others)
    if beside and owner.gradients_taken:
        names = sorted(others)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        text = (
            f"{owner.name} takes gradients as they arrive, and {names[0]}{more} is trained beside by another optimiser"
        )
        raise RecipeError([Problem(recipe.where("adapter.method"), f"adapter.method: {text}: take one of them out")])
    making = Making(t.optimizer.options["betas"], t.optimizer.options["eps"], t.seed, broadcast)
    try:
        first = owner.make_optimizer([{**group, "rank": ranks[group["site"]]} for group in own], making)
    except ValueError as error:
        problem = Problem(recipe.where("adapter.method"), f"adapter.method: {owner.name}: {error}")
        raise RecipeError([problem]) from None
    return Joined([first, made(t.optimizer, "optimizers").make(beside)]) if beside else first
