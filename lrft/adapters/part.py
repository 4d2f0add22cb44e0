"""Base classes of everything named under `adapter.method`, and the hooks that the training loop calls.

A *part* is one object per run; the fields of its class are the keys of the recipe. Its class variables are its
declaration: they are literals, read from the source without importing it, so that a recipe can be checked and
`lrft methods` answered before torch is loaded. A *method* is a part that builds adapters; a run has exactly one.

The training loop calls the hooks at fixed places and knows no method by name:

    once             options_with; prune_base; calibrate, assign_ranks, assign_ranks_from; shared; build -> initialize,
                     initialize_from -> (offset from init) -> wrap, for every site
    every step       rate (of each site), before_step, output_loss (of each micro-batch), loss (of the step),
                     compose_gradient (gradients reduced), after_backward (gradients clipped, too), after_step
    checkpoints      state, load_state
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.gradients import FurtherPasses, Gradients, StepPasses
from lrft.adapters.peft_type import PeftType

CalibrationResult = Mapping[str, Mapping[str, Tensor]]


def not_at_hand(*_: Any) -> Any:
    raise ValueError("only available inside the training loop")


@dataclass
class Run:
    """The view of a step that hooks may read and change."""

    step: int
    """optimiser steps done before this one"""
    total_steps: int
    model: nn.Module
    adapters: Mapping[str, Adapter]
    optimizer: torch.optim.Optimizer
    seed: int
    reduce: Callable[[Tensor], Tensor]
    """sum over all processes"""
    fresh: Callable[[Site, int], Adapter] = not_at_hand
    """builds a fresh adapter for a site, as restart n >= 1 begins with it"""
    learning_rate: float = 1.0
    """peak learning rate: the recipe's, before schedule and factors"""
    held_out: Callable[[], float | None] = not_at_hand
    """loss on a few validation rows, the same on all processes; None when the run has no validation rows"""

    def steps(self, every: float) -> int:
        """`every` as optimiser steps, at least one: a share of the run below 1."""
        return max(1, round(every if every >= 1 else every * self.total_steps))

    @torch.no_grad()
    def forget(self, parameter: Tensor) -> None:
        """The optimiser's state of a parameter as before the first step: running means, and the count of steps that
        corrects them."""
        state = self.optimizer.state.get(parameter, {})
        if all(isinstance(value, Tensor) and value.is_floating_point() for value in state.values()):
            for tensor in state.values():
                tensor.zero_()
        else:  # counts, codes of numbers: the optimiser makes them anew
            self.optimizer.state.pop(parameter)

    def pairs(self) -> list[list[Any]]:
        """The modules that hold factors A and B with gradients, those of one rank together."""
        by_rank: dict[int, list[Any]] = {}
        module: Any
        for adapter in self.adapters.values():
            for module in adapter.modules():
                if getattr(getattr(module, "A", None), "grad", None) is not None:
                    by_rank.setdefault(module.site.rank, []).append(module)
        return list(by_rank.values())


@dataclass(frozen=True)
class Making:
    """Arguments of a part's optimiser in addition to its parameters."""

    betas: tuple[float, float]
    eps: float
    seed: int
    broadcast: Callable[[Tensor], Tensor]
    """a tensor of the first process, on every process"""


class Outputs(Protocol):
    """The n trained tokens of a micro-batch and the logits that predict them, or of n texts the logits of their labels
    (`lrft.objectives.sft.Outputs`)."""

    targets: Tensor
    """(n,); of texts (n, m)"""
    of_texts: bool

    @property
    def places(self) -> Tensor:
        """(B, T) bool: the tokens whose last hidden states the answer is made of; of texts all that are no padding."""

    @property
    def logits(self) -> Tensor:
        """(n, vocabulary) float32; of texts (n, labels). Asking for them makes them all at once, which needs memory."""

    def base_logits(self) -> Tensor:
        """The same of the untouched base, without gradient: one more forward pass."""

    def pass_again(self) -> None:
        """One more forward pass over the same micro-batch, with gradient, for who looks into the model
        (`lrft.model.halves`)."""


class Part:
    """Abstract. A part fills slots, requires properties of the method, and overrides the hooks that it uses."""

    name: ClassVar[str]
    kind: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str]
    parameters: ClassVar[str] = "those of the method"
    exports: ClassVar[str] = "as the method"
    evidence: ClassVar[str] = ""
    builds: ClassVar[bool] = False
    on: ClassVar[str] = "lora"
    """default method for a part when the recipe names none"""
    slots: ClassVar[tuple[str, ...]] = ()
    provides: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ()
    conflicts: ClassVar[tuple[str, ...]] = ()
    """slots that no other part may fill in the same run, although this part does not fill them itself"""
    quantization_conflict: ClassVar[str] = ""
    """reason why it cannot be used over a quantised base, as the end of a sentence; empty when it can"""
    learning_rate: ClassVar[float | None] = None
    """default of training.learning_rate; parts override their method, and the lowest of several parts wins"""
    rate_source: ClassVar[str] = ""
    """source of learning_rate; required together with it"""
    edits_moments: ClassVar[bool] = False
    """whether it changes single numbers of the optimiser's state, which one that keeps 8 bits for each does not have"""
    no_reference: ClassVar[str] = ""
    """why an objective that measures against the base is refused beside it, as the end of "X ..."; "" for none"""
    takes_gradients: ClassVar[tuple[str, Any, str]] = ("", None, "")
    """The slot "optimizer": (option, value, makes): with that value of the option its optimiser takes each gradient as
    it arrives (`TakesGradients`), and makes a "step" of it, or its share of a "sum" over the passes of a step."""
    needs_adamw: ClassVar[str] = ""
    """what of AdamW it works with, when it works beside no other optimiser: the end of "NAME ..." """
    offset_from_init: ClassVar[bool] = False
    """`initialize` sets a nonzero product B A; the update is measured from that init"""
    natural_scale: ClassVar[float | None] = None
    """scaling factor s when the recipe has alpha: auto"""
    init_changes_output: ClassVar[bool] = False
    """the initialised adapter already changes the model's output"""
    keeps_dequantized: ClassVar[str] = ""
    """why an adapter over a quantised base cannot be merged into the original one; "" when it can"""
    may_not_move: ClassVar[tuple[str, ...]] = ()
    """name suffixes of trainable tensors that may not change in the first two steps (gated, or unfrozen later)"""

    # once
    def prune_base(self, model: nn.Module) -> None:
        """The slot "base": let layers of the base train with a part of their weights, in place
        (`lrft.model.pruning`). At each start of a run, before there are adapters; not where a saved adapter is loaded.
        Raises ValueError with the reason when the model does not allow it."""

    def alpha(self, rank: int) -> float:
        """The slot "scale": alpha when the recipe leaves it to us."""
        raise NotImplementedError("abstract: a part that fills the slot scale must implement this")

    def scale(self, alpha: float, rank: int) -> float:
        """The slot "scale": the factor s of the update from alpha and the site's own rank."""
        raise NotImplementedError("abstract: a part that fills the slot scale must implement this")

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        """The sites with their ranks decided; a site may be left out."""
        return list(sites)

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """Statistics for init, ranks or placement: {site: {name: tensor}}. Called once, before any
        adapter exists, and not again on resume or load."""
        return {}

    def assign_ranks_from(self, sites: Sequence[Site], seen: CalibrationResult) -> list[Site]:
        """The sites with the ranks that follow from `seen`; a site may be left out."""
        return list(sites)

    def initialize_from(self, adapter: Adapter, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        """Slot "init" of a part that calibrates: as `initialize`, with the statistics of this site."""

    def initialize(self, adapter: Adapter, W0: Tensor) -> None:
        """Slot "init": set the adapter's values before the first step. W0 (d, k). The caller seeds."""

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        """The adapter inside another one, or itself. W0 (d, k) is None when only the structure is asked for."""
        return adapter

    def options_with(self, tokenizer: Any) -> dict[str, Any] | None:
        """Its options with token ids in the place of text; None: they name no text. They are saved with the adapter.
        tokenizer: the base's, or None. Raises ValueError with the reason where that is not possible."""
        return None

    def base_advice(self, model: nn.Module) -> list[str]:
        """Warnings about this part on this base, before it has adapters or with them."""
        return []

    def rows_advice(self, rows: Any) -> list[str]:
        """Warnings about the training rows (`lrft.data.Rows`). Raises ValueError for rows that it cannot train on."""
        return []

    @property
    def whole_rows(self) -> bool:
        """Whether what it makes of a token depends on later tokens of its row: then no two rows share their prompt."""
        return False

    def lr_factors(self) -> dict[str, float]:
        """Learning rate over the recipe's, by role: the last word of a tensor's name."""
        return {}

    def advice(self, sites: Sequence[Site], offset_from_init: bool) -> list[str]:
        """Warnings about this composition: valid, but different from the paper."""
        return []

    def make_optimizer(self, groups: list[dict[str, Any]], making: Making) -> torch.optim.Optimizer:
        """The slot "optimizer". groups: of named parameters, each of one site, with "site", "rank", "lr",
        "weight_decay"; what all sites have in common is a site too, `SHARED`, of their largest rank. Its state holds
        tensors only."""
        raise NotImplementedError("abstract: a part that fills the slot optimizer must implement this")

    def optimizer_numbers(self, d: int, k: int, rank: int) -> int:
        """The slot "optimizer": how many numbers its state holds for a matrix (d, k)."""
        raise NotImplementedError("abstract: a part that fills the slot optimizer must implement this")

    @property
    def gradients_taken(self) -> str:
        """What its optimiser makes of each gradient as it arrives, by `takes_gradients`; "" where they are kept."""
        option, value, makes = self.takes_gradients
        return makes if option and getattr(self, option) == value else ""

    def gradient_numbers(self, d: int, k: int, rank: int) -> int:
        """The slot "optimizer": how many numbers of a gradient (d, k) are kept until the step."""
        return d * k

    def kept_numbers(self, d: int, k: int, rank: int) -> int:
        """How many numbers the part keeps for a matrix (d, k) during the run, where that is more than a few per trained
        one: for the forecast of memory."""
        return 0

    # every optimiser step
    @property
    def looks_at_outputs(self) -> bool:
        """Whether it adds a term of the loss that is made of logits."""
        return type(self).output_loss is not Part.output_loss

    @property
    def acts_between_passes(self) -> bool:
        """Whether it acts on gradients, trained tensors or the optimiser between the passes of one step and those of
        the next, or adds a term to the step's loss. One that uses such a hook for something else says so."""
        hooks = ("before_step", "loss", "compose_gradient", "after_backward", "after_step")
        return "optimizer" in self.slots or any(getattr(type(self), h) is not getattr(Part, h) for h in hooks)

    @property
    def acts_around_steps(self) -> bool:
        """Whether it may write to trained tensors before or after the optimiser's step."""
        hooks = ("before_step", "after_step")
        return self.acts_between_passes and any(getattr(type(self), h) is not getattr(Part, h) for h in hooks)

    def rate(self, run: Run, site: str) -> float:
        """Learning rate of one site's tensors over the scheduled one, in this step; `SHARED` is a site too. Asked
        before `before_step`."""
        return 1.0

    def before_step(self, run: Run) -> None: ...

    def loss(self, run: Run) -> Tensor | None:
        """A term added to the mean token loss of the step, or None."""
        return None

    def output_loss(self, run: Run, outputs: Outputs) -> Tensor | None:
        """A mean over a micro-batch's trained tokens that is added to their loss, or None. Micro-batches are weighted
        by their numbers of tokens. Asked in the forward pass of each."""
        return None

    @property
    def auxiliary_rows(self) -> float | str | None:
        """Rows beside those of the step for the slot "gradient": a share of the training rows, which are then trained
        on in no other way, or a file, read as data.train is; None: no such rows. Raises ValueError with the reason when
        the options lack them."""
        return None

    @property
    def further_passes(self) -> FurtherPasses:
        """What `compose_gradient` and `output_loss` ask for in each step."""
        return FurtherPasses()

    def compose_gradient(self, run: Run, gradient: Gradients, passes: StepPasses) -> Gradients:
        """The slot "gradient": the step's gradient, made of its own loss's (`gradient`) and of those of further passes.
        Trained tensors and the optimiser are afterwards as they were."""
        raise NotImplementedError("abstract: only a part that fills the slot gradient is asked")

    def after_backward(self, run: Run) -> None: ...

    def after_step(self, run: Run) -> None: ...

    def finished(self, step: int, total: int) -> bool:
        """Whether the state after `step` of `total` steps can be a result: False of a part that has not pruned yet.
        Until then no state is the best, and early stopping does not count."""
        return True

    # checkpoints: tensors only, so that they are plain safetensors
    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


class Method(Part):
    """Abstract: a part that builds adapters."""

    builds: ClassVar[bool] = True
    peft_type: ClassVar[str] = ""
    """what stock PEFT calls the method, where it has it; then `in_peft` says how"""

    @classmethod
    def in_peft(cls) -> PeftType | None:
        """How its adapters are written as PEFT's own type of them, and read from a folder of that type."""
        return None

    def shared(self, sites: Sequence[Site]) -> nn.Module | None:
        """What the adapters of all sites have in common: `Adapter.shared`. As for adapters, what is saved is its
        parameters, trained or frozen; buffers are made again. Its parameters' last words must be no adapter's."""
        return None

    def rebuild(self, site: Site, restart: int) -> Adapter:
        """The adapter that follows restart n >= 1: of the same shapes."""
        return self.build(site)

    def build(self, site: Site) -> Adapter:
        """A fresh adapter on the CPU. Raises ValueError with the reason when the site's shape does not fit."""
        raise NotImplementedError("abstract")
