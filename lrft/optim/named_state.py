"""The optimiser and its state, by the names of the parameters and never by their order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrft.errors import CheckFailed

# At the end of the key of a state's plain number, which is saved as a tensor too.
NUMBER = ":number"


def grouped(
    trained: Mapping[str, nn.Parameter],
    lr_factors: Mapping[str, float],
    lr: float,
    weight_decay: float,
    *,
    owners: Mapping[str, str] | None = None,
    undecayed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Parameters for an optimiser, one group per learning rate and decay. A tensor's role is the last word of its name.

    owners: the site of each tensor, to keep sites apart, or None. Each group keeps "factor", its rate over the
    recipe's, and "site", "" when sites are not kept apart.
    Vectors (magnitudes, scales, biases) get no weight decay, nor do the matrices `undecayed`, whose rows are vectors.
    """
    groups: dict[tuple[str, float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trained.items():
        factor = lr_factors.get(name.rsplit(".", 1)[-1], 1.0)
        decay = weight_decay if parameter.ndim > 1 and name not in undecayed else 0.0
        site = "" if owners is None else owners[name]
        groups.setdefault((site, factor, decay), []).append((name, parameter))
    return [
        {"params": members, "site": site, "factor": factor, "lr": lr * factor, "weight_decay": decay}
        for (site, factor, decay), members in groups.items()
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float, rate: Callable[[str], float] = lambda site: 1.0) -> None:
    """rate: by site, over `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"] * rate(group["site"])


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of each parameter in this step."""
    return {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as "parameter/entry" -> tensor; a plain number has `NUMBER` at the end of its key."""
    return {
        f"{name}/{entry}" if isinstance(value, Tensor) else f"{name}/{entry}{NUMBER}": _as_tensor(value)
        for name, parameter in _named(optimizer).items()
        for entry, value in optimizer.state[parameter].items()
    }


def _as_tensor(value: Tensor | int | float) -> Tensor:
    """Exact: 64 bits of an integer or a float."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def with_state(tensors: Iterable[str]) -> list[str]:
    """Names of the parameters that have state among `state_tensors`: all of them after the first step that was made,
    none before."""
    return sorted({key.rpartition("/")[0] for key in tensors})


def check_state(tensors: Mapping[str, Tensor], expected: Collection[str], named: Collection[str]) -> None:
    """Raises CheckFailed unless just the parameters `expected`, all of them `named`, have state."""
    found = set(with_state(tensors))
    odd = sorted((found ^ set(expected)) | (found - set(named)))[:3]
    if odd:
        raise CheckFailed(f"the saved optimiser state does not match the trainable parameters: {', '.join(odd)}")


def load_state_tensors(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], expected: Collection[str]
) -> None:
    """Put `state_tensors` back. Raises CheckFailed unless just the parameters `expected` have state."""
    named = _named(optimizer)
    check_state(tensors, expected, named)
    fused = {name for group in optimizer.param_groups if group.get("fused") for name in group["param_names"]}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if entry.endswith(NUMBER):
            optimizer.state[named[name]][entry.removesuffix(NUMBER)] = value.item()
            continue
        # A step counter is on the CPU, but for a fused step; everything else beside the parameter.
        where = value.device if value.ndim == 0 and name not in fused else named[name].device
        # A copy: the tensors of a read file are that file's memory, as long as nobody changes it.
        optimizer.state[named[name]][entry] = value.to(where, copy=True)


def _named(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
