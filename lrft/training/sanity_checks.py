"""Runtime checks of a training run. A failed check stops the run and reports the measured value."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lrft.adapters.attached import SHARED, Attached
from lrft.errors import CheckFailed
from lrft.model.modes import evaluation_mode
from lrft.utils.text import count

RESOLUTION = 2.0**-24  # of float32, relative to the number


class MovementCheck:
    """All trainable tensors change in the first steps, and no other tensor does.

    LoRA's A has no gradient in the first step, because B is zero: after one step every trained tensor must have a
    gradient and every adapter must have moved somewhere; after two steps every tensor must have moved.

    A resumed run has shown movement before, and near its end the rate can be below what float32 shows: there only
    gradients and frozen tensors are looked at.

    Layers that some rows reach and others do not, as experts that tokens choose, may wait for theirs.
    """

    STEPS = 2

    def __init__(
        self,
        attached: Attached,
        *,
        resumed: bool = False,
        may_not_move: Collection[str] = (),
        sometimes: Collection[str] = (),
    ) -> None:
        """may_not_move: name suffixes of trainable tensors that may not change; sometimes: names of layers that some
        rows reach and others do not. (So it is with a row of the embedding whose token does not occur.)"""
        self.trained = attached.trained()
        self.sites = attached.owners()
        self.may_wait = {name for name, site in self.sites.items() if site in sometimes} | attached.may_stay()
        self.start = (
            {}
            if resumed
            else {
                name: p.detach().clone()
                for name, p in self.trained.items()
                if name.rsplit(".", 1)[-1] not in may_not_move
            }
        )
        # Frozen tensors of the adapters may be set by their own parts: a gate, a mask.
        ours = {id(p) for p in attached.tensors().values()}
        # torch counts the in-place writes to a tensor: a frozen one must not have any.
        self.frozen = {name: (p, p._version) for name, p in attached.model.named_parameters() if id(p) not in ours}
        self.steps = 0
        self.reached: set[str] = set()
        self.waiting = set(self.may_wait)  # that no gradient has reached yet
        self.hooks = [p.register_hook(partial(self._note, name)) for name, p in self.trained.items()]

    def _note(self, name: str, gradient: Tensor | None) -> None:
        if gradient is not None:  # torch calls this as well for a tensor of which a function says: no gradient
            self.reached.add(name)

    def unreached(self, reduce: Callable[[Tensor], Tensor] = lambda flags: flags) -> list[str]:
        """Trained tensors that no gradient has reached in this step. To be asked after its backward passes.

        reduce: sum over processes: it is enough that one of them had a row that reaches a tensor.
        """
        if self.steps == self.STEPS:
            return []
        device = next((p.device for p in self.trained.values()), None)
        flags = torch.tensor([float(name in self.reached) for name in self.trained], device=device)
        self.reached.clear()
        return [name for name, flag in zip(self.trained, reduce(flags).tolist(), strict=True) if not flag]

    def after_step(self, step: int, unreached: list[str], rates: Mapping[str, float], proven: dict[str, str]) -> None:
        """Look after an optimiser step that was made; note in `proven` what holds. Raises CheckFailed.

        rates: the learning rate of each tensor in this step. Adam moves a number by about that much, which float32
        does not show where the number is 2^24 times larger: in a long warm-up such a tensor may stand still.
        """
        if self.steps == self.STEPS:
            return
        self.steps += 1
        self.waiting &= set(unreached)
        if unreached := [name for name in unreached if name not in self.may_wait]:
            raise CheckFailed(
                f"no gradient reaches {_some(unreached)} in step {step}",
                "The model does not use the output of these layers for this step's rows, or uses it without a "
                "gradient: exclude them with adapter.exclude_modules.",
            )
        touched = [name for name, (p, version) in self.frozen.items() if p._version != version]
        if touched:
            raise CheckFailed(f"frozen tensors changed in step {step}: {_some(touched)}")
        still = [
            name
            for name, (moved, largest) in self.movements().items()
            if name not in self.may_wait and not moved and rates[name] > RESOLUTION * largest
        ]
        if self.steps == 1:
            # What all adapters have in common is none of them: it may wait for their own tensors.
            moving = {self.sites[name] for name in self.start.keys() - set(still)} | {SHARED}
            still = [site for site in dict.fromkeys(self.sites[name] for name in self.start) if site not in moving]
        if still:
            raise CheckFailed(
                f"{_some(still)} did not move in {count(self.steps, 'step')}",
                "Either its gradient is zero, e.g. because the model multiplies the layer's output by zero, or the "
                "learning rate is too small for float32.",
            )
        total, waiting = len(self.trained), sorted(self.waiting)
        proven["gradients"] = f"gradients reach {total - len(waiting)} of {total} tensors, no other tensor changed"
        if waiting:
            proven["gradients"] += f"; other rows can reach {_some(waiting)}"
        if self.steps == self.STEPS:
            self.start.clear()
            for hook in self.hooks:
                hook.remove()

    def movements(self) -> dict[str, tuple[bool, float]]:
        """Of each tensor, whether it has moved and its largest number at the start: read at once from a GPU."""
        if not self.start:
            return {}
        found = [
            torch.stack([(self.trained[name].detach() != start).any().float(), start.abs().max().float()])
            for name, start in self.start.items()
        ]
        return {name: (moved > 0, top) for name, (moved, top) in zip(self.start, read(found), strict=True)}


def read(figures: list[Tensor]) -> list[list[float]]:
    """Figures of the same shape, which may lie on several devices."""
    device = figures[0].device
    values: list[list[float]] = torch.stack([figure.to(device) for figure in figures]).tolist()
    return values


def init_against_base(
    attached: Attached, model: nn.Module, batch: Mapping[str, Tensor], weight: float
) -> tuple[float, float]:
    """(mean loss of the adapted model, of the base) on one batch, without dropout. model: a `LossModule`.

    weight: how much the batch counts
    """
    with evaluation_mode(model):
        adapted = model(batch).item() / weight
    with attached.as_base(model):
        base = model(batch).item() / weight
    return adapted, base


def _some(names: list[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
