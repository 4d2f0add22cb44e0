"""Handle on a model with adapters: read, save, load, disable, detach."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, AdapterLinear, Delta, Site, load_tensors
from lrft.adapters.beside import Put
from lrft.adapters.modules_to_save import Beside, tensors_of, unwrapped
from lrft.model import linear
from lrft.model.experts import restack, stack_of
from lrft.model.modes import evaluation_mode
from lrft.model.pruned import whole_again

# What the first adapted layer calls the module that all adapters have in common; in files, the first word of the
# names of its tensors.
SHARED = "adapters_shared"


def switches(wrappers: Iterable[nn.Module]) -> list[AdapterLinear | Beside]:
    """All that has to be switched off for the untouched base: a wrapper may stand around another."""
    found: list[AdapterLinear | Beside] = []
    for module in wrappers:
        while isinstance(module, AdapterLinear | Beside):
            found.append(module)
            module = module.base
    return found


class Attached:
    """Adapters in a model.

    modules   site name -> adapter module, in the model's order
    sites     the sites, with rank and factor
    methods   the recipe's words for what was attached: [{"name": ..., "options": {...}}, ...]
    shared    what all adapters have in common, or None
    left_out  targeted layers that got no adapter -> the reason; told by `lrft.attach`
    beside    what else is trained: modules in full, rows, biases
    """

    def __init__(
        self,
        model: nn.Module,
        modules: dict[str, Adapter],
        methods: tuple[dict[str, Any], ...],
        sites: list[Site],
        shared: nn.Module | None = None,
        put: Put | None = None,
    ) -> None:
        self.model = model
        self.modules = modules
        self.methods = methods
        self.sites = sites
        self.shared = shared
        self.left_out: Mapping[str, str] = {}
        self.beside = put or Put()

    @property
    def modules_to_save(self) -> dict[str, nn.Module]:
        """name -> trained copy of each module that is trained in full, norms included"""
        return self.beside.full

    def layers(self) -> dict[str, AdapterLinear]:
        """site name -> the layer that holds base and adapter."""
        found = {name: self.model.get_submodule(name) for name in self.modules}
        return {name: layer for name, layer in found.items() if isinstance(layer, AdapterLinear)}

    def wrappers(self) -> dict[str, Any]:
        """name -> what stands there in the place of a module of the base, which it has as `base`."""
        return {**self.layers(), **self.beside.wrappers}

    def tensors(self) -> dict[str, nn.Parameter]:
        """Every tensor that is saved, trained or frozen, as "site.tensor"; of modules trained in full too."""
        common = {} if self.shared is None else {f"{SHARED}.{name}": p for name, p in self.shared.named_parameters()}
        own = {f"{site}.{name}": p for site, adapter in self.modules.items() for name, p in adapter.tensors().items()}
        return {**common, **own, **tensors_of(self.beside.by_place)}

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trained tensor as "site.tensor"."""
        return {name: p for name, p in self.tensors().items() if p.requires_grad}

    def owners(self) -> dict[str, str]:
        """The site of every trained tensor, by its name; `SHARED` for one that belongs to all, or to no adapter."""
        sites = {f"{site}.{name}": site for site, adapter in self.modules.items() for name in adapter.tensors()}
        return {name: sites.get(name, SHARED) for name in self.trained()}

    def may_stay(self) -> set[str]:
        """Names of trained tensors that a step can leave as they are: rows of tokens that do not occur, biases, experts
        of a stack that no token is routed to."""
        found = set(tensors_of({**self.beside.rows, **{f"{name}.bias": b for name, b in self.beside.biases.items()}}))
        experts = {name for name in self.modules if stack_of(name) is not None}
        return found | {name for name, site in self.owners().items() if site in experts}

    def undecayed(self) -> set[str]:
        """Names of trained matrices whose rows are vectors by themselves, which get no weight decay."""
        return set(tensors_of({**self.beside.rows}))

    @torch.no_grad()
    def delta(self, name: str) -> Tensor:
        """The dense update of one site, (d_out, d_in), in the adapter's dtype."""
        adapter = self.modules[name]
        if isinstance(adapter, Delta):
            return adapter.delta_weight()
        W0 = linear.dense(self.layers()[name].base).to(adapter.site.dtype)
        return adapter.weight(W0) - W0

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of every tensor of every adapter, trained and frozen, as "site.tensor"."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put `state` back. Raises ValueError when a tensor is missing, not expected, misshapen or not finite."""
        load_tensors("adapter", self.tensors(), state)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is the untouched base."""
        layers = switches(self.wrappers().values())
        before = [layer.enabled for layer in layers]
        try:
            for layer in layers:
                layer.enabled = False
            yield
        finally:
            for layer, enabled in zip(layers, before, strict=True):
                layer.enabled = enabled

    @contextmanager
    def as_base(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model`, which holds these adapters, is the untouched base in evaluation mode, without gradients."""
        with evaluation_mode(model), self.disabled():
            yield

    def detach(self) -> nn.Module:
        """Put the base layers back and return the model, as it was before, still frozen."""
        for name in self.wrappers():
            parent, _, word = name.rpartition(".")
            setattr(self.model.get_submodule(parent), word, unwrapped(self.model.get_submodule(name)))
        whole_again(self.model)
        restack(self.model)
        return self.model
