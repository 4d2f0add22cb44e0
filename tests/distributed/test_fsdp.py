"""lrft.distributed.fsdp: what each process holds, and what is exchanged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

import lrft
from lrft.distributed import fsdp
from lrft.model import linear


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_blocks_are_divided_and_everything_else_is_whole(alone: None) -> None:
    model = tiny.make("llama")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fsdp.shard(model, fsdp.mesh_over("cpu", 1, "node"))
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor) == (".layers." in name), name
    for name, module in linear.named_linears(model):
        assert torch.equal(linear.dense(module), before[f"{name}.weight"].float())
    attached = lrft.attach(model, {"method": "dora", "rank": 4})
    assert not any(isinstance(tensor, DTensor) for tensor in attached.tensors().values())
    assert not any(parameter.requires_grad for parameter in model.parameters() if isinstance(parameter, DTensor))


def test_a_model_without_blocks_is_refused(alone: None) -> None:
    odd = tiny.make("llama")
    del odd.model.layers
    with pytest.raises(ValueError, match="no blocks"):
        fsdp.shard(odd, fsdp.mesh_over("cpu", 1, "node"))


def test_nodes_must_be_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="6 processes on nodes of 4 each"):
        fsdp.mesh_over("cpu", 6, "node")


def test_auto_divides_what_takes_most_of_a_gpu_and_a_word_of_the_recipe_stands() -> None:
    assert fsdp.strategy("auto", 70, 100) == "ddp"
    assert fsdp.strategy("auto", 71, 100) == "fsdp"
    assert fsdp.strategy("auto", 71, None) == "ddp", "a CPU's memory is not a process's own"
    assert fsdp.strategy("ddp", 71, 100) == "ddp"
    assert fsdp.strategy("fsdp", 1, None) == "fsdp"
    assert fsdp.strategy("zero2", 71, 100) == "zero2"


def test_gradients_travel_in_messages_of_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsdp, "MESSAGE", 100)
    parameters = [
        nn.Parameter(torch.full((3, 4), float(i)).to(dtype))
        for i in range(4)
        for dtype in (torch.float32, torch.float64)
    ]
    parameters.sort(key=lambda p: str(p.dtype))
    for parameter in parameters[1:]:
        parameter.grad = parameter.detach().clone()
    sent = []

    class Accelerator:
        def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
            assert reduction == "mean"
            sent.append(tensor.dtype)
            return tensor / 2

    fsdp.mean_gradients(parameters, Accelerator())
    assert (sent[0], sent[-1]) == (torch.float32, torch.float64)
    assert 2 < len(sent) < len(parameters)
    assert torch.equal(parameters[0].grad, torch.zeros(3, 4))
    for parameter in parameters[1:]:
        assert torch.equal(parameter.grad, parameter.detach() / 2)
