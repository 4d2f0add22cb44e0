"""Modules that are trained in full beside the adapters and saved with them: a head. PEFT's `modules_to_save`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrft.model.head import head_modules


class SavedModule(nn.Module):
    """A module of the base with its trained copy, in at least float32. `enabled=False` is that of the base."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.trained = trained_copy(base)
        self.enabled = True
        self.train(base.training)

    def forward(self, *given: Any, **named: Any) -> Any:
        if not self.enabled:
            return self.base(*given, **named)
        wanted = next(self.trained.parameters()).dtype
        # Half-precision hidden states of a frozen base; under autocast each layer casts for itself.
        wide = [g.to(wanted) if isinstance(g, Tensor) and g.is_floating_point() else g for g in given]
        return self.trained(*wide, **named)


def trained_copy(base: nn.Module) -> nn.Module:
    """The module again, trained, float32 where it is narrower. (deepcopy by itself does not take fake tensors.)"""
    tensors: dict[int, Any] = {id(buffer): buffer.clone() for buffer in base.buffers()}
    for p in base.parameters():
        wide = torch.promote_types(p.dtype, torch.float32)
        tensors[id(p)] = nn.Parameter(p.detach().to(wide, copy=True))
    return copy.deepcopy(base, tensors)


def put_beside(model: nn.Module) -> dict[str, nn.Module]:
    """Wrap the modules of the model's head. Their trained copies, by name."""
    copies = {}
    for name in head_modules(model):
        parent, _, word = name.rpartition(".")
        wrapped = SavedModule(model.get_submodule(name))
        setattr(model.get_submodule(parent), word, wrapped)
        copies[name] = wrapped.trained
    return copies


def tensors_of(copies: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Their parameters as "module.parameter", the names that they have in the model."""
    return {f"{name}.{word}": p for name, module in copies.items() for word, p in module.named_parameters()}
