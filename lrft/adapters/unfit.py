"""Linear layers that cannot carry an adapter, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn
from torch.func import functional_call

from lrft.model import linear
from lrft.model.head import head_modules

UNLIKE = "its output is more than a matrix product with its weight"
IN_FULL = "trained in full, as part of the head"
NAMED_IN_FULL = "trained in full, as adapter.modules_to_save says"
SHARED = "weight shared with another layer, so an adapter could not be merged"


def unfit(
    model: nn.Module, linears: Mapping[str, nn.Module], uncalled: Mapping[str, str], full: Collection[str] = ()
) -> dict[str, str]:
    """Name of each linear layer of `model` that cannot carry an adapter -> the reason.

    uncalled: those that text is known not to reach -> why, as of `lrft.adapters.reach.uncalled`
    full: names of modules that a recipe trains in full
    """
    shared = sharing(model)
    head = head_modules(model)
    found: dict[str, str] = {}
    for name, module in linears.items():
        if is_in(name, head):
            found[name] = IN_FULL
        elif is_in(name, full):
            found[name] = NAMED_IN_FULL
        elif name in uncalled:
            found[name] = uncalled[name]
        elif not returns_product(module):
            found[name] = UNLIKE
        elif name in shared:
            found[name] = SHARED
    return found


def is_in(name: str, modules: Collection[str]) -> bool:
    """Whether a layer is one of `modules` or lies inside of one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def returns_product(module: nn.Module) -> bool:
    """Whether calling the layer gives one tensor of outputs. Routers of experts that are linear layers return more."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return True
    d, k = linear.shape(module)
    tensors = {name: torch.empty(p.shape, dtype=p.dtype, device="meta") for name, p in module.named_parameters()}
    x = torch.empty(2, k, dtype=module.weight.dtype, device="meta")
    try:
        with torch.no_grad():
            y = functional_call(module, tensors, (x,))
    except Exception:  # a forward of its own can raise anything where it takes more than x
        return False
    return isinstance(y, torch.Tensor) and y.shape == (2, d)


def sharing(model: nn.Module) -> dict[str, str]:
    """Name of each module whose weight has another place as well -> that place.

    An adapter on it would act in one place only, but merge into the other as well. Two names inside one parent that is
    itself used twice are one place.
    """
    places: dict[int, dict[tuple[int, str], str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = stored_weight(module)
        if weight is not None:
            parent, _, word = name.rpartition(".")
            place = (id(model.get_submodule(parent)), word)
            places.setdefault(id(weight), {}).setdefault(place, name)
    found: dict[str, str] = {}
    for names in places.values():
        first, *others = names.values()
        found |= dict.fromkeys(others, first)
        found |= {first: others[0]} if others else {}
    return found


def stored_weight(module: nn.Module) -> nn.Parameter | None:
    """What holds a module's weight: itself, or a quantised layer's codes."""
    own = dict(module.named_parameters(recurse=False))
    return own.get("weight", own.get("codes"))
