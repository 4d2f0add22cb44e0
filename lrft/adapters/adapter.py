"""The adapter of one linear layer.

A target linear layer is replaced by `AdapterLinear(base, adapter)`. The base is never written to. The adapter states
`weight(W0)`, the paper's formula for the adapted weight, and `forward(x, base)`, the way that training computes it;
merging is the formula, training is the fast path, and one test over all methods says that they agree.

Shapes: x (..., k), W (d, k), A (r, k), B (d, r), dW = s B A.

Tensors of an adapter are of two kinds only, so that saving needs no special case:
    Parameter   trained, or frozen because it depends on W or on data (requires_grad=False)   saved
    buffer      can be made again from a seed or a formula: registered with persistent=False  not saved
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from lrft.model import fused_linear
from lrft.model.grouped import InPairs, Pair
from lrft.model.send import send

UNITS_AT_ONCE = 256
AdapterKind = TypeVar("AdapterKind", bound="Adapter")


@dataclass(frozen=True)
class Site:
    """One linear layer that is adapted."""

    name: str
    d: int
    """outputs"""
    k: int
    """inputs"""
    rank: int
    scale: float = 1.0
    """the factor s on the update, already computed from alpha and rank"""
    depth: int | None = None
    """index of the block, None outside the blocks"""
    dropout: float = 0.0
    transposed: bool = False
    """the base stores (k, d), as GPT-2's Conv1D does"""
    dtype: torch.dtype = torch.float32
    """dtype of the adapter's tensors: float32, or float64 over a float64 base"""


class Factors(NamedTuple):
    """dW = scale * B @ A with B (d, r) and A (r, k)."""

    B: Tensor
    A: Tensor
    scale: float


class PeftForm(NamedTuple):
    """What stock PEFT's LoRA needs to compute the same function on the untouched base."""

    A: Tensor
    B: Tensor
    scale: float
    magnitude: Tensor | None = None


class Lent:
    """A module that is used and not owned: a copy of its user uses the same one."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module = module

    def __deepcopy__(self, memo: Any) -> Lent:
        return self


class Adapter(nn.Module):
    """Abstract. A subclass defines `weight`, and may define a faster `forward`.

    One whose output is no linear function of its input (experts behind a router) has no weight to state: it says so
    with `mergeable = False`, and states `forward`.
    """

    mergeable: ClassVar[bool] = True

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        self.dropout = site.dropout
        """current dropout probability on the input; a schedule may change it between steps"""
        self.in_copies = False
        """rows come in as many copies as `copies` says, one for each member (`lrft.adapters.ensemble`)"""

    @property
    def copies(self) -> int:
        """Members that want a copy of the rows each, in the present mode of training or evaluation."""
        return 1

    def members(self) -> list[PeftForm]:
        """Each member as a LoRA of its own, where there are several."""
        return []

    @property
    def shared(self) -> Any:
        """What all adapters of the model have in common (`Method.shared`). It belongs to the model, not to this one."""
        return self.__dict__.get("_shared", Lent(None)).module

    def share(self, shared: nn.Module | None) -> None:
        """Let this adapter, and those inside it, use `shared` without owning it: it is saved and counted once."""
        for module in self.modules():
            if isinstance(module, Adapter):
                module.__dict__["_shared"] = Lent(shared)

    def read_from(self) -> list[nn.Parameter]:
        """Every parameter that the output depends on: its own, and those that all adapters have in common."""
        return [*self.parameters(), *(() if self.shared is None else self.shared.parameters())]

    def refuse_copies(self) -> None:
        """Raises ValueError when a copy of this adapter would not stay what it is: tensors in common are trained on."""
        if self.shared is not None and any(p.requires_grad for p in self.shared.parameters()):
            raise ValueError(
                "its update uses trained tensors that it shares with other layers, so it cannot be frozen as a "
                "constant: "
                "remove the method that restarts the update or subtracts its init"
            )

    def weight(self, W0: Tensor) -> Tensor:
        """The adapted weight (d, k) from the base's (d, k), both in the adapter's dtype. No randomness."""
        raise NotImplementedError("abstract")

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        """The adapted layer's output (..., d) for x (..., k), in the dtype that `base(x)` has."""
        raise NotImplementedError("abstract")

    def peft(self) -> PeftForm | None:
        """This adapter as a LoRA of stock PEFT, or None when PEFT cannot say it exactly."""
        return None

    def tensors(self) -> dict[str, nn.Parameter]:
        """Every tensor to be saved, by the name it has in files. A wrapper leaves no trace in what it wraps."""
        return {name.replace("inner.", ""): value for name, value in self.named_parameters()}

    def pairs(self, x: Tensor, base: nn.Module) -> Sequence[Pair] | None:
        """What `forward` adds to the product of a plain base, where that is all it does and it is pairs B A; else
        None. Stacked experts compute such layers together."""
        return None

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` (names as in `tensors()`) into this adapter. Raises ValueError naming what does not fit."""
        load_tensors(self.site.name, self.tensors(), tensors)

    def cast(self, x: Tensor) -> Tensor:
        """x in the dtype in which the adapter computes. Under autocast the products choose for themselves."""
        return x if torch.is_autocast_enabled(x.device.type) else x.to(self.site.dtype)


class Siblings(Protocol):
    """Those that read the same tensor (`lrft.adapters.shared_input`)."""

    def product(self, reader: Delta, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor | None:
        """W x + bias + dW x; None where the reader is on its own."""


class Delta(Adapter):
    """Abstract: W = W0 + dW. Write `delta_weight` or `delta`; each defaults to the other."""

    siblings: Siblings | None = None

    def delta_weight(self) -> Tensor:
        """dW (d, k), from the images of the unit vectors: some at a time, an identity (k, k) can be larger than W."""
        reference, k = next(self.parameters()), self.site.k
        images = []
        with torch.autocast(reference.device.type, enabled=False):
            for first in range(0, k, UNITS_AT_ONCE):
                units = reference.new_zeros(min(UNITS_AT_ONCE, k - first), k)
                units.diagonal(offset=first).fill_(1)
                images.append(self.delta(units))
        return torch.cat(images).T

    def delta(self, x: Tensor) -> Tensor:
        """dW x for x (..., k)."""
        return linear(x, self.delta_weight())

    def sums_from(self) -> float:
        """From how many vectors at once (W + dW) x is cheaper than W x + dW x, in a step. By default from the first
        where dW x is the product with dW, and never where it is computed otherwise."""
        return 0 if type(self).delta is Delta.delta else math.inf

    def sums(self, x: Tensor) -> bool:
        """Whether W + dW is made for x."""
        return fused_linear.is_wide(x) and x.numel() // x.shape[-1] >= self.sums_from()

    def factors(self) -> Factors | None:
        """dW as a product of two thin matrices, or None when it is none. Differentiable."""
        return None

    def weight(self, W0: Tensor) -> Tensor:
        return W0 + self.delta_weight()

    def drop(self, x: Tensor) -> Tensor:
        """Dropout on the adapter's input, never on the base's."""
        return dropout(x, self.dropout) if self.dropout and self.training else x

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        dropped = self.drop(x)
        if self.is_fast(x, base):
            W, bias = fused_linear.parts_of(base)
            y = self.by_factors(x, dropped, W, bias)
            if y is not None:
                return y
            if dropped is x and self.sums(x):
                return fused_linear.linear_plus_made(x, W, bias, self.delta_weight, self.inputs())
            if dropped is x:
                return fused_linear.linear_plus(x, W, bias, self.delta, self.inputs())
        return self.eager(x, dropped, base)

    def by_factors(self, x: Tensor, dropped: Tensor, W: Tensor, bias: Tensor | None) -> Tensor | None:
        """W x + bias + dW dropped, where dW is a product of two thin matrices; None where it is none."""
        if self.siblings is not None and dropped is x:
            y = self.siblings.product(self, x, W, bias)
            if y is not None:
                return y
        factors = self.factors()
        if factors is None:
            return None
        if dropped is x and fused_linear.sum_pays(x, len(factors.A), *W.shape):
            return fused_linear.linear_plus_made(x, W, bias, self.delta_weight, self.inputs())
        return fused_linear.linear_plus_pair(x, dropped, W, bias, *factors)

    def eager(self, x: Tensor, dropped: Tensor, base: nn.Module) -> Tensor:
        """The slow twin of `forward`, for every kind of base: each operation by itself."""
        y = base(x)
        return y + self.delta(self.cast(dropped)).to(y.dtype)

    def is_fast(self, x: Tensor, base: nn.Module) -> bool:
        """Whether the fused steps compute what the slow twin computes: a plain base, and one dtype throughout."""
        if not fused_linear.is_plain(base):
            return False
        return torch.is_autocast_enabled(x.device.type) or x.dtype == base.weight.dtype == self.site.dtype

    def pairs(self, x: Tensor, base: nn.Module) -> Sequence[Pair] | None:
        own_way = type(self).forward is not Delta.forward or self.in_copies
        factors = None if own_way or not self.is_fast(x, base) else self.factors()
        return None if factors is None else (Pair(*factors, self.dropout if self.training else 0.0),)

    def inputs(self) -> list[Tensor]:
        """The tensors that `delta` depends on and that may be trained."""
        return [p for p in self.read_from() if p.requires_grad]

    def peft(self) -> PeftForm | None:
        factors = self.factors()
        return None if factors is None else PeftForm(factors.A, factors.B, factors.scale)


class FactoredDelta(Delta):
    """Abstract: dW = scale B A. Write `factors`."""

    def factors(self) -> Factors:
        raise NotImplementedError("abstract")

    def delta_weight(self) -> Tensor:
        B, A, scale = self.factors()
        return scale * B @ A

    def delta(self, x: Tensor) -> Tensor:
        B, A, scale = self.factors()
        return scale * linear(linear(x, A), B)


def frozen_copy(adapter: AdapterKind) -> AdapterKind:
    """A copy of which nothing is trained. (deepcopy by itself does not take tensors without content.)"""
    tensors: dict[int, Any] = {id(buffer): buffer.clone() for buffer in adapter.buffers()}
    tensors |= {id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for p in adapter.parameters()}
    return copy.deepcopy(adapter, tensors)


class OffsetFromInit(Delta):
    """The change of `inner` since its start: W0 + dW - dW_start. Holds a start that is not zero off the base.

    For factors the difference is one product of rank 2r without cancellation,
        B A - B0 A0 = [B, B - B0] [A - A0; A0],
    exactly zero at the start and, in bfloat16, as precise as the change itself. ([B, -B0] [A; A0], the usual form,
    subtracts two numbers of the size of the principal part of W.)
    """

    def __init__(self, inner: Delta) -> None:
        super().__init__(inner.site)
        inner.refuse_copies()
        self.inner = inner
        self.start = frozen_copy(inner)

    def delta_weight(self) -> Tensor:
        return self.inner.delta_weight() - self.start.delta_weight()

    def delta(self, x: Tensor) -> Tensor:
        factors = self.factors()
        if factors is None:
            return self.inner.delta(x) - self.start.delta(x)
        return factors.scale * linear(linear(x, factors.A), factors.B)

    def factors(self) -> Factors | None:
        now, then = self.inner.factors(), self.start.factors()
        if now is None or then is None:
            return None
        B = torch.cat([now.B, now.B - then.B], dim=1)
        A = torch.cat([now.A - then.A, then.A], dim=0)
        return Factors(B, A, now.scale)


@torch.no_grad()
def load_tensors(place: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy `given` into `own`, by name. Raises ValueError, naming `place`, for what does not fit."""
    missing, extra = own.keys() - given.keys(), given.keys() - own.keys()
    if missing or extra:
        raise ValueError(f"{place}: tensors missing {sorted(missing)[:3]}, not expected {sorted(extra)[:3]}")
    for name, value in own.items():
        if given[name].shape != value.shape:
            raise ValueError(f"{place}.{name}: shape {tuple(given[name].shape)}, expected {tuple(value.shape)}")
    # Read at once: each answer of a GPU is waited for.
    finite = [torch.isfinite(given[name]).all() for name in own]
    whole = torch.stack([flag.to(finite[0].device) for flag in finite]).tolist() if finite else []
    if broken := [name for name, fine in zip(own, whole, strict=True) if not fine]:
        raise ValueError(f"{place}.{broken[0]}: holds values that are not finite")
    for name, value in own.items():
        value.copy_(send(given[name], value.device))


class AdapterLinear(nn.Module):
    """A linear layer with its adapter. `enabled=False` is the untouched base."""

    def __init__(self, base: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.enabled = True
        self.own_bias: nn.Module | None = None
        """turns an output with the base's bias into one with a trained bias"""
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            found: Tensor = self.base(x)
            return found
        y: Tensor = self.adapter(x, self.base)
        return y if self.own_bias is None else self.own_bias(y)

    def pairs(self, x: Tensor) -> Sequence[Pair] | None:
        """`Adapter.pairs` of the adapter that acts now."""
        if not self.enabled:
            return self.base.pairs(x) if isinstance(self.base, InPairs) else None
        return None if self.own_bias is not None else self.adapter.pairs(x, self.base)

    # Models ask their linear layers for dtype and device through these.
    @property
    def weight(self) -> Tensor | nn.Module:
        return self.base.weight

    @property
    def bias(self) -> Tensor | nn.Module | None:
        return self.base.bias
