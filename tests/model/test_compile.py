"""A block with adapters is one graph for a compiler, and stays the same one while its adapters are trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import tiny
import torch

from lrft.model.layers import blocks_of

# A pair; one around another, which keeps norms; kept off the base by its start; an update that is made again.
SAMPLE = ("lora", "dora", "pissa", "mora")
MORE = ("lora-fa", "vera", "adalora", "lokr", "fourierft", "hra")
CASES = [*SAMPLE, *(pytest.param(case, marks=pytest.mark.all) for case in MORE)]


def losses(case: str, backend: Callable[..., Any] | None) -> list[float]:
    """Of three steps of SGD, the second block compiled where there is a backend."""
    torch._dynamo.reset()
    model, ids = tiny.make("llama").train(), tiny.tokens()
    attached = cases.attach(model, case)
    if backend is not None:
        blocks_of(model)[1].compile(dynamic=True, backend=backend)
    optimizer = torch.optim.SGD(attached.trained().values(), lr=0.1)
    found = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own parts
@pytest.mark.parametrize("case", CASES)
def test_a_block_is_one_graph_in_all_steps(case: str) -> None:
    graphs: list[Any] = []

    def noted(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    assert losses(case, noted) == pytest.approx(losses(case, None), rel=1e-5)
    assert len(graphs) == 1
