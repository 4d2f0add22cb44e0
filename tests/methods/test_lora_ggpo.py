"""The noise of LoRA-GGPO: how large, and when."""

from __future__ import annotations

from typing import Any

import pairs
import torch
from torch import Tensor

from lrft.adapters import compose
from lrft.adapters.part import Run
from lrft.methods.lora_ggpo import LoraGgpo

SHAPE = ((30, 50),)


def run_of(attached: Any) -> Run:
    return Run(0, 9, attached.model, attached.modules, None, 0, lambda t: t)


def part_of(attached: Any) -> LoraGgpo:
    composition = compose.compose((e["name"], e["options"]) for e in attached.methods)
    return next(part for part in composition.parts if isinstance(part, LoraGgpo))


def noise_of(attached: Any) -> Tensor:
    """E (d, k) of one pass, from the images of the unit vectors."""
    layer = attached.model[0].train()
    noisy = layer(torch.eye(50, dtype=torch.float64))
    return (noisy - layer.eval()(torch.eye(50, dtype=torch.float64))).T


def test_rows_are_as_large_as_weight_and_gradient_say() -> None:
    attached = pairs.attach({"lora-ggpo": {"sigma": 0.2, "beta": 0.5}}, shapes=SHAPE)
    part = part_of(attached)
    G = pairs.gradients(attached, 0)
    del G
    part.after_backward(run_of(attached))
    part.before_step(run_of(attached))
    A, B = pairs.pairs_of(attached)[0]
    s = attached.sites[0].scale
    W = attached.layers()["0"].base.weight + s * B @ A
    Gt = s * (B @ A.grad + B.grad @ A)
    c = (0.2 * W.norm(dim=1) + 0.5 * Gt.norm(dim=1) ** 2).detach()
    drawn = torch.stack([noise_of(attached) for _ in range(60)]).detach()
    assert torch.allclose(drawn.std(dim=(0, 2)), c / 30**0.5, rtol=0.08)
    assert (drawn.mean(dim=(0, 2)) / c).abs().max() < 0.02


def test_its_size_beside_the_weight() -> None:
    attached = pairs.attach({"lora-ggpo": {"beta": 0.0}}, shapes=SHAPE, filled=False)
    part_of(attached).before_step(run_of(attached))
    share = noise_of(attached).norm() / attached.layers()["0"].base.weight.norm()
    assert torch.allclose(share, torch.tensor(0.03 * (50 / 30) ** 0.5, dtype=torch.float64), rtol=0.1)


def test_evaluation_and_zero_sizes_are_lora_to_the_bit() -> None:
    x = torch.randn(4, 50, dtype=torch.float64)
    plain = pairs.attach("lora", shapes=SHAPE).model[0]
    attached = pairs.attach("lora-ggpo", shapes=SHAPE)
    part_of(attached).before_step(run_of(attached))
    assert torch.equal(attached.model[0].eval()(x), plain(x))
    assert not torch.equal(attached.model[0].train()(x), plain(x))
    still = pairs.attach({"lora-ggpo": {"sigma": 0.0, "beta": 0.0}}, shapes=SHAPE)
    part_of(still).before_step(run_of(still))
    assert torch.equal(still.model[0].train()(x), plain(x))


def test_the_gradient_goes_through_the_noise_and_not_into_it() -> None:
    attached = pairs.attach("lora-ggpo", shapes=SHAPE)
    part_of(attached).before_step(run_of(attached))
    layer = attached.model[0].train()
    x = torch.randn(4, 50, dtype=torch.float64).requires_grad_()
    torch.manual_seed(5)
    layer(x).sum().backward()
    torch.manual_seed(5)
    W = layer(torch.eye(50, dtype=torch.float64)).T - layer.base.bias[:, None]
    assert torch.allclose(x.grad, W.sum(dim=0).expand(4, 50), rtol=1e-10)
