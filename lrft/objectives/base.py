"""Base class of training objectives. One file each in this folder, or an entry point of `lrft.objectives`.

An objective says which kind of rows it takes, how rows become a batch, how much a row counts (the divisor of the step),
how much a batch counts, and which module answers a batch with its summed loss. That module may note sums beside the
loss, from which the objective makes figures. The loop, evaluation, calibration and checks know no more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrft.data import DataReport, Rows
from lrft.data.collate import ENTRIES, Form, sequence_numbers
from lrft.errors import CheckFailed
from lrft.model.head import Head
from lrft.model.modes import evaluation_mode
from lrft.objectives.figures import means
from lrft.objectives.packing import Layout

Context = Callable[[], AbstractContextManager[Any]]
Reduce = Callable[[Tensor], Tensor]


START = "start from"  # among the other models of a run: the adapter of adapter.start_from


@dataclass(frozen=True)
class OtherModel:
    """A frozen model that answers beside the trained one (`lrft.loading.others`), on the same device."""

    model: nn.Module
    """the trained model itself where `is_base`"""
    layout: Layout
    """how rows lie for it; where `is_base`, as for the trained model"""
    is_base: bool = False
    """it is the trained model without its adapters, inside of `around`"""
    around: Context = nullcontext
    key: str = ""
    """of the recipe, that names it"""
    fingerprint: str = ""
    """of what it was read from: a resumed run must find the same"""
    said: str = ""
    """what it is, for the user"""


def common_layout(own: Layout, others: Iterable[OtherModel], *, packing: bool | str) -> Layout:
    """How rows lie for several models that answer the same batches: padded, unless all take them packed alike.

    own: of the trained model; `direct` stays its own. Raises CheckFailed when packing is true but not possible.
    """
    layouts = [other.layout for other in others if not other.is_base]
    if all(layout.form == own.form for layout in layouts):
        return own
    if packing is True:
        raise CheckFailed("the models of this run do not take packed rows alike", "Set data.packing: false.")
    warning = next((layout.warning for layout in layouts if layout.warning), own.warning)
    return replace(own, form="padded", said="", warning=warning)


@dataclass(frozen=True)
class Forwards:
    """Forward passes that an objective makes without gradients, each over all tokens of the rows."""

    before: int = 0
    """once, before the first step, over the rows of training and validation"""
    step: int = 0
    """in each step and evaluation, over their rows, beside the pass that answers them"""


class LossModule(nn.Module):
    """Abstract: a model that answers a batch with its loss, summed over what the objective counts, float32, shape ().

    A module, so that a distributed wrapper around it sees the whole pass. A sum, never a mean: the divisor is the count
    of the whole optimiser step.

    model      the language model
    extra      in training, a mean over the batch's counted items that is added to their loss, or None
    as_base    the context in which `model` is the untouched base: a reference model free of charge
    copies     in how many copies rows are to come (`lrft.adapters.ensemble`)
    computing  the context in which it answers: of a precision
    head       what the outputs of a model with a head mean, or None
    sums       what `sum_of` has noted of the last batch, float64, whatever its shape
    ahead      what `look` has found in all batches of the step or of an evaluation, added up; None: not looked at
    gathered   what `gather` has found in them, all batches of all processes end to end; empty: not asked
    others     the models that the objective's options name (`Declaration.models`), by option, and the adapter that
               training starts from, as `START`; they are no submodules: not trained, not wrapped, not saved
    sources    names of the figures that are losses of single entries of data.train, by the number of the entry; batches
               then have `lrft.data.collate.ENTRIES`. Empty: they are not told apart
    wanted     figures that evaluation asks for beside those that are always noted: some of `offers`
    """

    offers: ClassVar[tuple[str, ...]] = ()
    """Figures that it notes in evaluation when they are `wanted`."""
    adds_extra: ClassVar[bool] = False
    """Whether `sum_of` adds `extra`. Methods that need it are refused beside an objective that does not."""
    mixes_copies: ClassVar[bool] = False
    """Whether `sum_of` knows rows in copies. Methods with copies are refused beside an objective that does not."""
    gathers: ClassVar[bool] = False
    """Whether the rows of a step, or of an evaluation, are compared with each other: `gather` then sees all batches
    before the first of them is answered, but for a step of one batch on one process."""
    tells_sources: ClassVar[bool] = False
    """Whether it notes, in training, the loss of each of `sources`: `note_rows` or `note_tokens`."""
    looks_ahead: bool = False
    """whether `look` has to see all batches of a step before the first of them is answered"""
    constant: tuple[str, ...] = ()
    """names of the numbers that `constants` gives, which do not change in training"""

    def __init__(self, model: nn.Module, *, as_base: Context | None = None) -> None:
        super().__init__()
        self.model = model
        self.as_base = as_base
        self.extra: Callable[[Any], Tensor | None] | None = None
        self.copies: Callable[[], int] = lambda: 1
        self.last_extra: Tensor | None = None
        self.computing: Context = nullcontext
        self.head: Head | None = None
        self.sums: dict[str, Tensor] = {}
        self.ahead: Tensor | None = None
        self.gathered: dict[str, Tensor] = {}
        self.others: Mapping[str, OtherModel] = {}
        self.sources: tuple[str, ...] = ()
        self.wanted: frozenset[str] = frozenset()

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        self.sums = {}
        with self.computing():
            return self.sum_of(batch)

    def note(self, name: str, values: Tensor) -> None:
        """A figure of this batch by its sum and its count: the mean of all `values` of the step is reported."""
        self.note_sum(name, torch.stack([values.detach().double().sum(), values.new_tensor(values.numel()).double()]))

    def note_sum(self, name: str, value: Tensor) -> None:
        """What adds up over micro-batches and processes, such as a confusion matrix. Every batch must note the
        same names in the same shapes, also when nothing of it counts."""
        self.sums[name] = value.detach().double()

    @property
    def by_source(self) -> bool:
        """Whether the losses of the batch at hand are told apart by their sources."""
        return self.training and bool(self.sources)

    def note_rows(self, losses: Tensor, batch: Mapping[str, Tensor]) -> None:
        """The losses (B,) of the rows of a batch, where they are told apart: each row counts one."""
        if self.by_source:
            self.note_sources(losses, torch.ones_like(losses), batch[ENTRIES])

    def note_tokens(
        self, losses: Tensor, batch: Mapping[str, Tensor], chosen: Tensor, weights: Tensor | None = None
    ) -> None:
        """The losses (n,) of tokens, where they are told apart; chosen: bool (B, T), which n of the batch they are of,
        row by row. weights (n,): what they count; None for one each."""
        if self.by_source:
            entries = batch[ENTRIES][sequence_numbers(batch)[chosen]]
            self.note_sources(losses, torch.ones_like(losses) if weights is None else weights, entries)

    def note_sources(self, losses: Tensor, counts: Tensor, entries: Tensor) -> None:
        """The losses (n,) of what counts `counts` (n,) in their sum, as a mean for each entry of data.train: entries
        (n,) int64."""
        both = torch.stack([losses.detach().double(), counts.detach().double()])
        sums = both.new_zeros(2, len(self.sources)).index_add(1, entries, both)
        for name, pair in zip(self.sources, sums.unbind(1), strict=True):
            self.note_sum(name, pair)

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError("abstract")

    def look(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Sums that the loss of every batch of the step depends on, float64. Asked without gradients."""
        raise NotImplementedError("abstract")

    def gather(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(n, ...) by name: what other batches of the step have to know of this one; n may differ from batch to batch.
        Asked without gradients."""
        raise NotImplementedError("abstract")

    def constants(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(rows, m) of the batch by name: what the untouched base says of it. Asked once, of the base."""
        raise NotImplementedError("abstract")

    @property
    def as_reference(self) -> Context | None:
        """The context in which `model` answers as what training started from: the untouched base, or the adapter that
        the recipe starts from."""
        return (lambda: self.asking(START)) if START in self.others else self.as_base

    @contextmanager
    def asking(self, option: str) -> Iterator[OtherModel]:
        """Inside, the other model of an option answers as itself: in evaluation mode and without gradients."""
        other = self.others[option]
        as_base = self.as_base if other.is_base and self.as_base is not None else nullcontext
        with evaluation_mode(other.model), as_base(), other.around():
            yield other

    def checks(self) -> dict[str, str]:
        """What a user should know of this loss on this model, as sentences by subject."""
        return {}

    def take_extra(self) -> Tensor | float:
        """What the extra term has added to the last answer."""
        taken, self.last_extra = self.last_extra, None
        return 0.0 if taken is None else taken


def look_ahead(
    losses: LossModule,
    batches: Iterable[tuple[Mapping[str, Tensor], bool]],
    reduce: Reduce,
    *,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Let `losses` see all batches of a step, those of this process; reduce: sum over the `world` processes.

    batches: each with whether it counts; one that does not is only passed, since other processes wait for it.
    """
    losses.ahead, losses.gathered = None, {}
    if losses.looks_ahead:
        with evaluation_mode(losses), losses.computing():
            found = [losses.look(batch) * (1.0 if counts else 0.0) for batch, counts in batches]
        losses.ahead = reduce(torch.stack(found).sum(dim=0))
    if losses.gathers:
        left = iter(batches)
        few = list(islice(left, 2))
        if len(few) == 1 and world == 1:
            return
        with evaluation_mode(losses), losses.computing():
            seen = [(losses.gather(batch), counts) for batch, counts in chain(few, left)]
        for name, first in seen[0][0].items():
            own = torch.cat([found[name] if counts else first[:0] for found, counts in seen])
            losses.gathered[name] = end_to_end(own, reduce, rank, world)


def end_to_end(own: Tensor, reduce: Reduce, rank: int, world: int) -> Tensor:
    """`own` (n, ...) of all processes, in their order; n may differ from process to process."""
    sizes = own.new_zeros(world, dtype=torch.int64)
    sizes[rank] = len(own)
    ends: list[int] = reduce(sizes).cumsum(0).tolist()
    whole = own.new_zeros(ends[-1], *own.shape[1:])
    whole[ends[rank] - len(own) : ends[rank]] = own
    return reduce(whole)


def added_up(before: Mapping[str, Tensor], more: Mapping[str, Tensor], counts: float) -> dict[str, Tensor]:
    """`before` and `more`, or zeros in the shapes of `more` for a batch that does not count (`counts` 0)."""
    taken = {name: value if counts else torch.zeros_like(value) for name, value in more.items()}
    return {name: before[name] + value if name in before else value for name, value in taken.items()}


@dataclass(frozen=True)
class Asked:
    """What decides on a head. report: of the data. train: its rows. pad_id: the token that fills up batches. seed: of
    what the checkpoint lacks. folder, config: of the base."""

    report: DataReport
    train: Rows
    pad_id: int
    seed: int = 0
    folder: Path | None = None
    config: Any = None


class Objective:
    """Abstract. A subclass is a frozen dataclass: its name in `training.objective`, its options, and the methods here,
    of which `figures` has an answer. Class variables are literals in the class itself: `rows` is read without import.
    """

    name: ClassVar[str]
    rows: ClassVar[str] = "tokens"
    """the kind of rows that it takes (`lrft.registry.ROWS`)"""
    rate_factor: ClassVar[float] = 1.0
    """what the default learning rate of a method is multiplied by; read without import, like `rows`"""
    head: ClassVar[str] = ""
    """the kind of head that it trains (`lrft.model.head.KINDS`), in batches that are padded; "" for a language model"""
    ranked_by: ClassVar[dict[str, str]] = {}
    """figures by which runs can be compared, each with which is better, "higher" or "lower"; read without import"""
    unit: ClassVar[str] = "trained token"
    """what `weight` counts, and the loss is a mean over, as one of them is called"""
    perplexity: ClassVar[bool] = False
    """whether e to the power of the loss is a perplexity; read without import"""

    referenced: ClassVar[bool] = False
    """whether rows are measured against the untouched base; read without import"""
    shares_prompts: ClassVar[bool] = False
    """whether its batches may have the form "shared" """
    weighs_rows: ClassVar[bool] = False
    """whether rows count by their weights (batches have them beside the labels); else rows with weights are refused"""
    compares_rows: ClassVar[bool] = False
    """whether the loss of a row is made of the other rows of its step"""
    reads_margins: ClassVar[bool] = False
    """whether the column margin of pairs counts; else it is refused"""
    placed: ClassVar[tuple[str, ...]] = ()
    """noted sums in which each row has a place of its own, (..., rows): a row that counts twice needs two places"""

    @classmethod
    def of_head(cls, head: Head) -> Objective:
        """With the options that fit a head of the kind that it trains."""
        return cls()

    def weight(self, rows: Rows, ids: Iterable[int]) -> float:
        """How much the rows `ids` count: the divisor of a step that has them."""
        raise NotImplementedError("abstract")

    def batch_weight(self, batch: Mapping[str, Tensor]) -> float:
        """The same of a collated batch."""
        raise NotImplementedError("abstract")

    def collate(self, rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, Tensor]:
        """The batch of the rows `ids`, on the CPU. form: padded, or packed as the model has been found to take it."""
        raise NotImplementedError("abstract")

    def head_for(self, asked: Asked) -> Head:
        """The head to be trained, for objectives that name a kind. Raises ValueError for options that do not fit the
        data or the base."""
        raise NotImplementedError("abstract")

    def forwards(self) -> Forwards:
        """What it costs beside the passes of other objectives; models that its options name are counted apart."""
        return Forwards()

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures beside the loss, from what the module has noted, added up over the step or the validation rows.

        The order is that in which they are shown, the most telling first. Here: means, of what `LossModule.note` noted.
        """
        return means(sums)

    def module(self, model: nn.Module, *, direct: bool = False) -> LossModule:
        """What answers such a batch with its summed loss.

        direct: logits are the output embedding's product with the decoder's last hidden states, so that they can be
        made in chunks (`lrft.objectives.packing` finds out).
        """
        raise NotImplementedError("abstract")
