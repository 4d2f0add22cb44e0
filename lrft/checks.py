"""What a run tests about itself. A check that fails stops the run with the figure."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrft.core.attached import Attached
from lrft.errors import CheckFailed
from lrft.evaluate import measuring
from lrft.loss import token_loss, trained_tokens

RESOLUTION = 2.0**-24  # of float32, relative to the number


class MovementCheck:
    """Every trained tensor moves in the first steps, and nothing else does.

    LoRA's A has no gradient in the first step, because B is zero: after one step every trained tensor must have a
    gradient and every adapter must have moved somewhere; after two steps every tensor must have moved.

    A resumed run has shown movement before, and near its end the rate can be below what float32 shows: there only
    gradients and frozen tensors are looked at.
    """

    STEPS = 2

    def __init__(self, attached: Attached, *, resumed: bool = False) -> None:
        self.trained = attached.trained()
        self.sites = {
            f"{site}.{name}": site for site, adapter in attached.modules.items() for name in adapter.tensors()
        }
        self.start = {} if resumed else {name: p.detach().clone() for name, p in self.trained.items()}
        ours = {id(p) for p in self.trained.values()}
        # torch counts the in-place writes to a tensor: a frozen one must not have any.
        self.frozen = {name: (p, p._version) for name, p in attached.model.named_parameters() if id(p) not in ours}
        self.steps = 0

    def unreached(self) -> list[str]:
        """Trained tensors without a gradient. To be asked before the gradients are cleared."""
        return [name for name, p in self.trained.items() if p.grad is None] if self.steps < self.STEPS else []

    def after_step(self, step: int, unreached: list[str], rates: Mapping[str, float], proven: dict[str, str]) -> None:
        """Look after an optimiser step that was made; note in `proven` what holds. Raises CheckFailed.

        rates: the learning rate of each tensor in this step. Adam moves a number by about that much, which float32
        does not show where the number is 2^24 times larger: in a long warm-up such a tensor may stand still.
        """
        if self.steps == self.STEPS:
            return
        self.steps += 1
        if unreached:
            raise CheckFailed(
                f"no gradient reaches {_some(unreached)} in step {step}",
                "These layers take no part in the forward pass: leave them out with adapter.exclude_modules.",
            )
        touched = [name for name, (p, version) in self.frozen.items() if p._version != version]
        if touched:
            raise CheckFailed(f"frozen tensors were changed by step {step}: {_some(touched)}")
        still = [
            name
            for name, start in self.start.items()
            if torch.equal(self.trained[name].detach(), start) and rates[name] > RESOLUTION * start.abs().max().item()
        ]
        if self.steps == 1:
            moved = {self.sites[name] for name in self.trained.keys() - set(still)}
            still = [site for site in dict.fromkeys(self.sites[name] for name in self.trained) if site not in moved]
        if still:
            raise CheckFailed(
                f"{_some(still)} did not move in {self.steps} step{'s' * (self.steps > 1)}",
                "Either the layer takes no part in the forward pass, or the learning rate is too small for float32.",
            )
        proven["gradients"] = f"gradients reach {len(self.trained)} of {len(self.trained)} tensors, nothing else moved"
        if self.steps == self.STEPS:
            self.start.clear()


def start_against_base(attached: Attached, batch: Mapping[str, Tensor]) -> tuple[float, float]:
    """(mean token loss of the adapted model, of the base) on one batch, without dropout."""
    tokens = trained_tokens(batch)
    with measuring(attached.model):
        adapted = token_loss(attached.model, batch).item() / tokens
        with attached.disabled():
            base = token_loss(attached.model, batch).item() / tokens
    return adapted, base


@torch.no_grad()
def packed_equals_alone(model: nn.Module, rows: list[Tensor]) -> float:
    """Largest difference between the logits of rows laid end to end and of each row alone, over the largest logit.

    `rows`: token ids, each (n,). The model is asked in evaluation mode, without gradients.
    """
    training = model.training
    model.eval()
    try:
        alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
        positions = torch.cat([torch.arange(len(row), device=row.device) for row in rows])
        packed = model(input_ids=torch.cat(rows)[None], position_ids=positions[None], use_cache=False).logits[0]
    finally:
        model.train(training)
    return ((packed - alone).abs().max() / alone.abs().max()).item()


def require_packing(model: nn.Module, rows: list[Tensor], tolerance: float) -> str:
    """Raises CheckFailed when this model lets packed rows see each other; returns a sentence for the report."""
    difference = packed_equals_alone(model, rows)
    if not difference <= tolerance:  # a NaN fails as well
        raise CheckFailed(
            "packed rows are not what they are alone with this model: "
            f"logits differ by {difference:.1e} of the largest",
            "Its attention does not keep the rows apart. Set data.packing: false.",
        )
    return f"packed equals alone within {difference:.0e} of the largest logit"


def _some(names: list[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
