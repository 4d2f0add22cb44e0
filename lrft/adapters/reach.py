"""Find the linear layers that a text-only forward pass calls, by running a few tokens."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from lrft.model import linear
from lrft.model.fake_kernels import imagined_kernels

TOKENS = 8


def uncalled(model: Any) -> frozenset[str]:
    """Names of the linear layers that a training pass over text does not call, of a language model of transformers.

    Such are those of the towers of a model that also sees or hears, of cross-attention to what they make, and layers
    whose weight the model reads without calling them. `model` may be real, fake or on the meta device, and is left as
    it was. Empty where a model without content cannot make the pass: what it computes depends on the content.
    """
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: called.add(name))
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        passed = make_pass(model)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if not passed:
        return frozenset()
    return frozenset(name for name, _ in linear.named_linears(model) if is_passed_over(model, name, called))


def uncalled_by_text(model: Any) -> frozenset[str]:
    """`uncalled` of any module. Empty for what is not a language model, or does not take text alone."""
    decoder = getattr(model, "main_input_name", None) == "input_ids" and not model.config.is_encoder_decoder
    if not (decoder and model.can_generate()):
        return frozenset()
    try:
        return uncalled(model)
    except Exception:  # whatever a model's code raises that wants more than text
        return frozenset()


def make_pass(model: Any) -> bool:
    """Answer a few tokens. False where a model without content raises on the way."""
    first = next(model.parameters())
    gpu = [first.device] if first.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=gpu):
        ids = torch.zeros(1, TOKENS, dtype=torch.long, device=first.device)
        if not (first.is_meta or isinstance(first, FakeTensor)):
            model(input_ids=ids, use_cache=False)
            return True
        # Some models look into the mask to make theirs; one of four dimensions is handed on as it is.
        for mask in ({"attention_mask": ids.new_zeros(1, 1, 1, 1)}, {}):
            with imagined_kernels(model), contextlib.suppress(Exception):  # whatever a model's code may raise
                model(input_ids=ids, **mask, use_cache=False)
                return True
    return False


def is_passed_over(model: nn.Module, name: str, called: set[str]) -> bool:
    """Whether a layer was not called, and no other choice of expert would have called it.

    One of a list may be passed over by these tokens and not by others, as an expert is: it counts as called where
    another of its list and class was.
    """
    if name in called:
        return False
    words = name.split(".")
    for at in range(1, len(words)):
        path = ".".join(words[:at])
        module = model.get_submodule(path)
        if path not in called and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            return not any(other in called for other in alike(model, path))
    return not any(other in called for other in alike(model, name))


def alike(model: nn.Module, name: str) -> list[str]:
    """Names of the modules of the same class in the list that a module is in."""
    parent, _, _ = name.rpartition(".")
    around = model.get_submodule(parent)
    if not isinstance(around, nn.ModuleList | nn.ModuleDict):
        return []
    kind = type(model.get_submodule(name))
    return [f"{parent}.{word}" for word, module in around.named_children() if type(module) is kind]
