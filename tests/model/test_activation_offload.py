"""lrft.model.activation_offload: gradients to the bit, weights where they are, and little left on the device."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place

import lrft
from lrft.adapters import gradient_checkpointing
from lrft.model import activation_offload
from lrft.objectives.sft import TokenLoss

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", ["lora", "dora", "full", "hra"])
@pytest.mark.parametrize("kind", ["none", "light", "full"])
def test_gradients_are_the_same_to_the_bit(method: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.Tensor] = []
    monkeypatch.setattr(activation_offload, "Moved", noting(moved))
    gradients = []
    for context in (nullcontext(), activation_offload.offloading(CPU, least=64)):
        model = tiny.make("llama").train()
        attached = lrft.attach(model, {"method": method, "rank": 4}, seed=1)
        generator = torch.Generator().manual_seed(1)
        for parameter in attached.trained().values():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) / 10)
        if kind != "none":
            gradient_checkpointing.checkpoint(model, kind)
        ids = tiny.tokens()
        with context:
            loss = TokenLoss(model, direct=True)({"input_ids": ids, "labels": ids})
        loss.backward()
        gradients.append([parameter.grad for parameter in attached.trained().values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert moved
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert not any(tensor.untyped_storage().data_ptr() in weights for tensor in moved)


def noting(moved: list[torch.Tensor]) -> Any:
    class Noting(activation_offload.Moved):
        def __init__(self, tensor: torch.Tensor, before: Any = None) -> None:
            moved.append(tensor)
            super().__init__(tensor, before)

    return Noting


def test_what_is_kept_leaves_the_device_and_comes_back() -> None:
    x = torch.randn(100, 200)[:, ::2].requires_grad_()
    with activation_offload.offloading(CPU, least=1):
        y = (x.exp() * 2).sum()
    saved = y.grad_fn.next_functions[0][0].next_functions[0][0]._saved_result  # type: ignore[union-attr]
    assert saved.stride() == x.exp().stride()
    y.backward()
    assert torch.equal(x.grad, 2 * x.detach().exp())


def test_small_tensors_and_those_elsewhere_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.Tensor] = []
    monkeypatch.setattr(activation_offload, "Moved", noting(moved))
    x = torch.ones(64, requires_grad=True)
    for device, least, expected in ((CPU, 4 * 64 + 1, 0), (torch.device("meta"), 1, 0), (CPU, 4 * 64, 1)):
        with activation_offload.offloading(device, least):
            x.exp().sum().backward()
        assert len(moved) == expected


def test_a_run_learns_the_same(place: Place) -> None:
    plain, moved = place.train(out="plain"), place.train("training.activation_offload=true", out="moved")
    assert runs.differing(runs.tensors(plain), runs.tensors(moved)) == []
    assert "activation_offload has no effect on a CPU" in (moved / "log.txt").read_text()
