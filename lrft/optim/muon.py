"""Muon of torch for matrices, AdamW for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.errors import MissingError
from lrft.optim.adamw import AdamW
from lrft.optim.base import Optimizer
from lrft.optim.groups import Joined, split

# Names of embeddings and output heads: a step of their rows is no step of a hidden layer.
OUTSIDE = {"embed_tokens", "embed_in", "embed_out", "wte", "wpe", "lm_head", "score"}


@dataclass(frozen=True)
class Muon(Optimizer):
    """Muon (Jordan et al., 2024; Liu et al., arXiv 2502.16982) as torch has it: orthogonalised momentum of matrices.

    Embeddings, output heads and whatever is no matrix are trained by AdamW with its defaults. The rate is that of
    AdamW: the step of a matrix is scaled to the root mean square that AdamW's has.
    """

    name: ClassVar[str] = "muon"

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the running mean of gradients."""
    nesterov: bool = True
    """Nesterov's momentum."""
    iterations: Annotated[int, Field(ge=1, lt=100)] = 5
    """Newton-Schulz iterations of the orthogonalisation."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Raises MissingError under a torch without Muon."""
        if not hasattr(torch.optim, "Muon"):
            raise MissingError(
                f"training.optimizer: torch {torch.__version__} has no Muon", "pip install --upgrade 'torch>=2.9'"
            )
        hidden, others = split(groups, is_hidden)
        members = [AdamW().make(others)] if others else []
        if hidden:
            options: dict[str, Any] = {
                "momentum": self.momentum,
                "nesterov": self.nesterov,
                "ns_steps": self.iterations,
            }
            members.insert(0, torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **options))
        return Joined(members)

    def state_bytes(self, parameter: Tensor) -> int:
        return parameter.numel() * parameter.element_size() * (1 if parameter.ndim == 2 else 2)


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether a tensor is a matrix of a hidden layer."""
    return parameter.ndim == 2 and OUTSIDE.isdisjoint(name.split("."))
