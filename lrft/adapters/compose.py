"""From recipe entries to a composition of methods and parts.

The order inside one site is fixed here, not by the list in the recipe: build -> start, start_from -> anchor -> wrap.
(A start after wrapping would look for A and B inside the wrapper.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lrft import registry
from lrft.adapters.gradients import FurtherPasses
from lrft.adapters.part import Method, Outputs, Part, Run
from lrft.registry import MethodCard

# Hook order: parts that repeat the step run outermost; gradient transforms run last, after all others have read
# the raw gradients of the passes.
INSIDE = ("steps", "pair-gradient")
# Share of the model outside of linear layers that is worth a line.
SAID_SHARE = 0.005


@dataclass(frozen=True)
class Composition:
    """The parts of a run: exactly one builds adapters. `words` holds the recipe's entries as JSON values."""

    method: Method
    parts: tuple[Part, ...]
    entries: tuple[dict[str, Any], ...]

    @property
    def offset_from_init(self) -> bool:
        return any(part.offset_from_init for part in self.parts)

    @property
    def reads_weights(self) -> bool:
        """Whether some part looks at the base's weights before the first step: a wide copy is made only then."""
        hooks = ("initialize", "initialize_from", "wrap")
        return any(getattr(type(part), hook) is not getattr(Part, hook) for part in self.parts for hook in hooks)

    @property
    def calibrates(self) -> bool:
        """Whether some part looks at data before the first step."""
        return any(type(part).calibrate is not Part.calibrate for part in self.parts)

    @property
    def init_changes_output(self) -> bool:
        return any(part.init_changes_output for part in self.parts)

    @property
    def scale_owner(self) -> Part | None:
        """The part that computes the scaling factor s from alpha: owner of slot `scale`, else the method, or None."""
        filled = next((part for part in self.parts if "scale" in part.slots), None)
        return filled or (self.method if "scale" in self.method.provides else None)

    @property
    def may_not_move(self) -> set[str]:
        """Name suffixes of trainable tensors that may not change in the first two steps."""
        return {role for part in self.parts for role in part.may_not_move}

    @property
    def optimizer_owner(self) -> Part | None:
        """The part that brings an optimiser of its own."""
        return next((part for part in self.parts if "optimizer" in part.slots), None)

    @property
    def gradient_owner(self) -> Part | None:
        """The part that makes a step's gradient from several passes."""
        return next((part for part in self.parts if "gradient" in part.slots), None)

    @property
    def further_passes(self) -> FurtherPasses:
        """Those of all parts in each step."""
        each = [part.further_passes for part in self.parts]
        return FurtherPasses(*(sum(getattr(one, kind.name) for one in each) for kind in fields(FurtherPasses)))

    @property
    def looks_at_outputs(self) -> bool:
        """Whether some part adds a term of the loss that is made of logits."""
        return any(part.looks_at_outputs for part in self.parts)

    @property
    def keeps_dequantized(self) -> str:
        """Why an adapter over a quantised base cannot be merged into the original one; "" when it can."""
        return next((part.keeps_dequantized for part in self.parts if part.keeps_dequantized), "")

    @property
    def whole_rows(self) -> bool:
        """Whether what some part makes of a token depends on later tokens of its row."""
        return any(part.whole_rows for part in self.parts)

    def with_tokenizer(self, tokenizer: Any) -> Composition:
        """The same with token ids where options name text. Raises ValueError with the reason where that is not
        possible."""
        found = [part.options_with(tokenizer) for part in self.parts]
        if not any(options is not None for options in found):
            return self
        entries = zip(self.entries, found, strict=True)
        return compose((e["name"], e["options"] if options is None else options) for e, options in entries)

    @property
    def acting_between_passes(self) -> list[str]:
        """Names of the parts that act on gradients, trained tensors or the optimiser between the passes of one step and
        those of the next, or add a term to the step's loss."""
        return [part.name for part in self.parts if part.acts_between_passes]

    def after_backward(self, run: Run) -> None:
        for part in sorted(self.parts, key=_depth):
            part.after_backward(run)

    def after_step(self, run: Run) -> None:
        for part in sorted(self.parts, key=_depth, reverse=True):  # those of one depth stay in their order
            part.after_step(run)

    def output_loss(self, run: Run, outputs: Outputs) -> Tensor | None:
        """The sum of the parts' terms for one micro-batch. Those that pass again come last: others may have watched the
        pass that is being answered."""
        parts = sorted(self.parts, key=lambda part: part.further_passes.own > 0)
        terms = [term for part in parts if (term := part.output_loss(run, outputs)) is not None]
        return torch.stack(terms).sum() if terms else None

    @property
    def rates_by_site(self) -> bool:
        """Whether some part sets the learning rate of each site during the run."""
        return any(type(part).rate is not Part.rate for part in self.parts)

    def rate(self, run: Run, site: str) -> float:
        """Learning rate of a site's tensors over the scheduled one, in this step."""
        return math.prod(part.rate(run, site) for part in self.parts)

    def lr_factors(self) -> dict[str, float]:
        """Learning rate over the recipe's, by role."""
        factors: dict[str, float] = {}
        for part in self.parts:
            for role, factor in part.lr_factors().items():
                factors[role] = factors.get(role, 1.0) * factor
        return factors


def _depth(part: Part) -> int:
    """How near to the optimiser's step a part stands, whatever the recipe's order."""
    return max((INSIDE.index(slot) + 1 for slot in part.slots if slot in INSIDE), default=0)


def compose_section(adapter: Any) -> Composition:
    """The composition of a recipe's adapter section."""
    return compose((entry.name, entry.options) for entry in adapter.method)


def compose(entries: Iterable[tuple[str, dict[str, Any]]]) -> Composition:
    """The parts named by `entries` (name, options), already checked by the recipe; lora builds when none does."""
    options = dict(entries)
    cards = registry.methods()
    parts: list[Part] = []
    for name in registry.compose(list(options)):
        card = cards[name]
        parts.append(card.load()(**options.get(name, {})))
    method = parts[0]
    if not isinstance(method, Method):
        raise TypeError(f"{method.name} declares that it builds adapters but is not a subclass of Method")
    return Composition(method, tuple(parts), tuple(_entry(cards[p.name], options.get(p.name, {})) for p in parts))


def _entry(card: MethodCard, options: dict[str, Any]) -> dict[str, Any]:
    """As an adapter's lrft.json has it: with the installed package that brings the method, if it is not lrft's own."""
    return {"name": card.name, "options": options, **({"package": card.package} if card.package else {})}


def missing_method(entries: Iterable[Mapping[str, Any]]) -> str | None:
    """The first of a saved adapter's entries whose method is not installed, and what brings it; None: all are."""
    known = registry.methods()
    for entry in entries:
        if entry["name"] not in known:
            whose = f"{entry['package']} brings it" if "package" in entry else "this lrft has none"
            return f"the method {entry['name']}: {whose}"
    return None
