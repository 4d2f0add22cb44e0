"""Modules that stand in the place of a module of the base and train tensors of their own: PEFT's `modules_to_save`,
`trainable_token_indices` and `bias`.

Each holds the base's module as `base`, which is never written to; `enabled=False` is that of the base.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

from lrft.adapters.adapter import AdapterLinear, Lent
from lrft.model.streamed import content


class Beside(nn.Module):
    """Abstract: in the place of `base`."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.enabled = True
        self.train(base.training)

    # Models ask their layers for dtype and device through these.
    @property
    def weight(self) -> Any:
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias


class SavedModule(Beside):
    """A module of the base with its trained copy, in at least float32.

    wide: what a half-precision base's copy answers stays wide, as that of a head may; else it gets the base's dtype.
    """

    def __init__(self, base: nn.Module, *, wide: bool = True) -> None:
        super().__init__(base)
        self.trained = trained_copy(base)
        self.wide = wide
        self.train(base.training)

    def forward(self, *given: Any, **named: Any) -> Any:
        if not self.enabled:
            return self.base(*given, **named)
        wanted, like = next(self.trained.parameters()).dtype, next(self.base.parameters()).dtype
        # Half-precision hidden states of a frozen base; under autocast each layer casts for itself.
        found = self.trained(*(cast(g, wanted) for g in given), **named)
        return found if self.wide or like == wanted else cast(found, like)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A floating tensor in `dtype`; anything else as it is."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class TokenRows(nn.Module):
    """The trained rows (n, k) of some tokens of an embedding, in at least float32."""

    def __init__(self, weight: Tensor, ids: Sequence[int]) -> None:
        super().__init__()
        self.ids = tuple(ids)
        chosen = weight.detach()[list(ids)]
        self.rows = nn.Parameter(chosen.to(torch.promote_types(chosen.dtype, torch.float32), copy=True))
        places = torch.full((len(weight),), -1, dtype=torch.long, device=weight.device)
        places[list(ids)] = torch.arange(len(self.ids), device=weight.device)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("at", torch.tensor(self.ids, device=weight.device), persistent=False)
        self.places: Tensor
        self.at: Tensor


class EmbeddingRows(Beside):
    """An embedding of which some rows are trained: tokens of other rows get what the base has for them."""

    def __init__(self, base: nn.Module, trained: TokenRows) -> None:
        super().__init__(base)
        self.trained = trained
        # Its own forward, which may scale what it looks up, over the trained rows alone.
        like: Any = copy.copy(base)
        like._parameters = dict(base._parameters)
        like.padding_idx = None  # a row of the whole embedding, not of these
        self.like = Lent(like)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.base(ids)
        if not self.enabled:
            return found
        places = self.trained.places[ids]
        assert self.like.module is not None
        mine = functional_call(self.like.module, {"weight": self.trained.rows}, (places.clamp(min=0),))
        return torch.where((places >= 0)[..., None], mine.to(found.dtype), found)


class HeadRows(Beside):
    """A head of which some rows are trained: its own, or those of the embedding that is the same matrix."""

    def __init__(self, base: nn.Module, trained: TokenRows) -> None:
        super().__init__(base)
        self.trained = trained

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.base(hidden)
        if not self.enabled:
            return found
        ids = self.trained.at
        bias: Any = self.base.bias
        mine = linear(
            hidden.to(self.trained.rows.dtype),
            self.trained.rows,
            None if bias is None else cast(bias[ids], torch.float32),
        )
        return found.index_copy(-1, ids, mine.to(found.dtype))


class TrainedBias(nn.Module):
    """The trained bias (d,) of a layer, in at least float32, whose output has the base's bias in it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        bias: Any = base.bias
        self.value = nn.Parameter(content(bias).detach().to(torch.promote_types(bias.dtype, torch.float32), copy=True))
        self.of = Lent(base)

    def forward(self, found: Tensor) -> Tensor:
        """found (..., d): the layer's output with the base's bias."""
        assert self.of.module is not None
        bias: Any = self.of.module.bias
        return found + (self.value - bias).to(found.dtype)


class OwnBias(Beside):
    """A layer without an adapter whose bias is trained."""

    def __init__(self, base: nn.Module, trained: TrainedBias) -> None:
        super().__init__(base)
        self.trained = trained

    def forward(self, *given: Any, **named: Any) -> Any:
        found = self.base(*given, **named)
        return self.trained(found) if self.enabled else found


def unwrapped(module: nn.Module) -> nn.Module:
    """The module of the base in whose place this one stands; itself where it is that one."""
    while isinstance(module, AdapterLinear | Beside):
        module = module.base
    return module


def trained_copy(base: nn.Module) -> nn.Module:
    """The module again, trained, float32 where it is narrower. (deepcopy by itself does not take fake tensors.)"""
    tensors: dict[int, Any] = {id(buffer): buffer.clone() for buffer in base.buffers()}
    for p in base.parameters():
        wide = torch.promote_types(p.dtype, torch.float32)
        tensors[id(p)] = nn.Parameter(content(p).detach().to(wide, copy=True))
    return copy.deepcopy(base, tensors)


def tensors_of(copies: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Their parameters as "place.parameter": of a module in full the names that they have in the model."""
    return {f"{name}.{word}": p for name, module in copies.items() for word, p in module.named_parameters()}
