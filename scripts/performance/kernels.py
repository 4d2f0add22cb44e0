"""Fast paths against their slow twins: python -m performance.kernels OUT.json ROUNDS

A pair is a function that returns two functions without arguments, the fast path and its plain definition. Both do a
forward and a backward pass and return the numbers by which they are compared. To add one: write it, name it in PAIRS.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention

from performance.rows import Shape, lengths

Pass = Callable[[], list[Tensor]]
Pair = Callable[[], tuple[Pass, Pass]]

TOKENS = 1024
WIDTH, INNER, VOCABULARY = 576, 1536, 49152  # of SmolLM2-135M, as are the heads
HEADS, GROUPS, HEAD = 9, 3, 64


def adapter() -> tuple[Pass, Pass]:
    """A LoRA layer in training against y = W x + s B (A x) in autograd's own steps."""
    import lrft

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, INNER, bias=False))
    attached = lrft.attach(model, {"method": "lora", "rank": 8, "alpha": 11.0}, seed=0)
    trained = dict(attached.trained())
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.02)
    factors = {name.rpartition(".")[2]: p for name, p in trained.items()}
    scale = attached.sites[0].scale
    weight = dict(attached.layers())["0"].base.weight
    x, above = torch.randn(1, TOKENS, WIDTH), torch.randn(1, TOKENS, INNER)
    model.train()

    def definition(inputs: Tensor) -> Tensor:
        return linear(inputs, weight) + scale * linear(linear(inputs, factors["A"]), factors["B"])

    def passing(forward: Callable[[Tensor], Tensor]) -> Pass:
        def once() -> list[Tensor]:
            inputs = x.clone().requires_grad_()
            y = forward(inputs)
            y.backward(above)
            return [y.detach(), inputs.grad, *taken(factors.values())]

        return once

    return passing(model), passing(definition)


def loss() -> tuple[Pass, Pass]:
    """The summed cross-entropy made with its gradient some logits at a time, against all logits at once."""
    from lrft.objectives.cross_entropy import chunked_cross_entropy

    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False)
    hidden, targets = torch.randn(TOKENS, WIDTH), torch.randint(VOCABULARY, (TOKENS,))

    def stock(inputs: Tensor) -> Tensor:
        return cross_entropy(head(inputs), targets, reduction="sum")

    def passing(forward: Callable[[Tensor], Tensor]) -> Pass:
        def once() -> list[Tensor]:
            inputs = hidden.clone().requires_grad_()
            value = forward(inputs)
            value.backward()
            return [value.detach(), *taken([inputs])]

        return once

    return passing(lambda inputs: chunked_cross_entropy(head, inputs, targets)), passing(stock)


def attention() -> tuple[Pass, Pass]:
    """Attention over rows laid end to end, row by row, against one call with a mask that keeps them apart."""
    from lrft.data.collate import ends_mask
    from lrft.model.packed_attention import attention as rowwise

    torch.manual_seed(0)
    sizes = lengths(Shape(rows=4, tokens=TOKENS, padding=0.3))
    query, key, value = (torch.randn(1, heads, TOKENS, HEAD) for heads in (HEADS, GROUPS, GROUPS))
    above = torch.randn(1, TOKENS, HEADS, HEAD)
    layer = nn.Module()
    layer.is_causal, layer.num_key_value_groups = True, HEADS // GROUPS
    apart = torch.block_diag(*(torch.ones(size, size).tril() for size in sizes)).bool()

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=apart, enable_gqa=True).transpose(1, 2)

    def by_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rowwise(layer, q, k, v, ends_mask(sizes))[0]

    def passing(forward: Callable[..., Tensor]) -> Pass:
        def once() -> list[Tensor]:
            inputs = [part.clone().requires_grad_() for part in (query, key, value)]
            y = forward(*inputs)
            y.backward(above)
            return [y.detach(), *taken(inputs)]

        return once

    return passing(by_rows), passing(masked)


def taken(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Their gradients, which are gone afterwards."""
    gradients = []
    for tensor in tensors:
        gradients.append(tensor.grad)
        tensor.grad = None
    return gradients


PAIRS: dict[str, Pair] = {"adapter layer": adapter, "token loss": loss, "attention": attention}


def compare(pair: Pair, rounds: int) -> dict[str, Any]:
    """Both by turns, `rounds` times after one that does not count: CPU seconds, and how far they are apart."""
    fast, slow = pair()
    found: dict[str, Any] = {"difference": distance(fast(), slow()), "fast": [], "slow": []}
    for _ in range(rounds):
        for name, run in (("fast", fast), ("slow", slow)):
            began = time.process_time()
            run()
            found[name].append(time.process_time() - began)
    return found


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference of two lists of tensors, over the largest number of each tensor."""
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(a, b, strict=True))


def main() -> None:
    found: dict[str, Any] = {}
    for name, pair in PAIRS.items():
        try:
            found[name] = {"says": (pair.__doc__ or "").strip()} | compare(pair, int(sys.argv[2]))
        except Exception as error:  # one pair that an inner change has broken must not hide the others
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
