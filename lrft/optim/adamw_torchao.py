"""AdamW of torchao with its state in 8 or 4 bits."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.optim.base import Optimizer
from lrft.optim.groups import on_gpu
from lrft.registry import Betas

# Numbers that share a scale, as torchao has it. A tensor that has less than SMALLEST numbers, or does not divide into
# blocks, keeps 32 bits.
BLOCK = {8: 256, 4: 128}
SMALLEST = 4096
# The means of the state, and whether they have a sign: by it torchao chooses the values that codes stand for.
MEANS = {"exp_avg": True, "exp_avg_sq": False}


@dataclass(frozen=True)
class AdamWTorchao(Optimizer):
    """AdamW with its state in 8 bits (Dettmers et al., arXiv 2110.02861) or 4 (Li et al., arXiv 2309.01507) as torchao
    has it.

    On a GPU torch compiles the step once for each shape. A tensor of fewer than 4096 numbers keeps 32 bits.
    """

    name: ClassVar[str] = "adamw-torchao"
    needs: ClassVar[str] = "torchao"
    blockwise: ClassVar[bool] = True

    betas: Betas = (0.9, 0.999)
    """Decay of the two running means."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    bits: Literal[4, 8] = 8
    """Bits of a number of the state."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from torchao.optim import AdamW4bit, AdamW8bit

        # A CPU would have to have a C++ compiler.
        compiled = on_gpu(groups)
        made = {4: AdamW4bit, 8: AdamW8bit}[self.bits](groups, betas=self.betas, eps=self.eps)
        return PlainState(made, self.bits, compiled)

    def state_bytes(self, parameter: Tensor) -> int:
        numbers = parameter.numel()
        if numbers < SMALLEST or numbers % BLOCK[self.bits]:
            return super().state_bytes(parameter)
        return 2 * (numbers * self.bits // 8 + 4 * numbers // BLOCK[self.bits])


class PlainState(torch.optim.Optimizer):
    """An optimiser of torchao whose quantised means are plain tensors between steps, and whose rates are numbers.

    A mean is kept as its parts: codes (uint8), a float32 scale for each block, and the float32 values of the codes.
    """

    def __init__(self, made: torch.optim.Optimizer, bits: int, compiled: bool) -> None:
        self.made, self.bits, self.compiled = made, bits, compiled
        super().__init__([{**group, "lr": float(group["lr"])} for group in made.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.made.param_groups = [{**group, "lr": torch.tensor(group["lr"])} for group in self.param_groups]
        self.made.state = defaultdict(dict, {p: self.joined(p, state) for p, state in self.state.items() if state})
        with self.stance():
            self.made.step()
        self.state.update({p: parted(state) for p, state in self.made.state.items()})

    def stance(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.compiled else torch.compiler.set_stance("force_eager")

    def joined(self, parameter: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """The state with the means as torchao's own tensors."""
        from torchao.optim.subclass_4bit import OptimState4bit
        from torchao.optim.subclass_8bit import OptimState8bit

        made = dict(state)
        for mean, signed in MEANS.items():
            if f"{mean}_codes" in state:
                parts = [made.pop(f"{mean}_{part}") for part in ("codes", "scale", "qmap")]
                shape = [parameter.shape] if self.bits == 4 else []
                kind = OptimState4bit if self.bits == 4 else OptimState8bit
                made[mean] = kind(*parts, signed, *shape, dtype=parameter.dtype)
        return made


def parted(state: dict[str, Any]) -> dict[str, Any]:
    """The state with the parts of torchao's tensors in the place of these."""
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if hasattr(value, "codes"):
            plain.update({f"{name}_{part}": getattr(value, part) for part in ("codes", "scale", "qmap")})
        else:
            plain[name] = value
    return plain
