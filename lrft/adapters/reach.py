"""Find the linear layers that text reaches, by running a few tokens: called, with a gradient from the logits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lrft.errors import LrftError
from lrft.model import linear
from lrft.model.fake_kernels import imagined_kernels

TOKENS = 8
UNCALLED = "not called in a forward pass over text"
UNLED = "no gradient leads from the logits to its output in a pass over text"


def uncalled(model: Any) -> dict[str, str]:
    """Names of the linear layers that a training pass over text cannot train -> why, of a language model.

    Such are those of the towers of a model that also sees or hears, of cross-attention to what they make, layers whose
    weight the model reads without calling them, and those whose output only decides a choice, as that of the indexers
    of sparse attention. `model` (of transformers) may be real, fake or on the meta device, and is left as it was. Empty
    where a model without content cannot make the pass: what it computes depends on the content.
    """
    called: set[str] = set()
    probes: dict[int, tuple[str, Tensor]] = {}

    def probed(name: str, output: Any) -> Any:
        """The output with a zero added, which is found again in the graph of the logits."""
        if not (isinstance(output, Tensor) and output.is_floating_point()):
            return output
        probe = output.new_zeros((), requires_grad=True)
        probes[id(probe)] = (name, probe)
        return output + probe

    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: called.add(name))
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    hooks += [
        module.register_forward_hook(lambda _, __, output, name=name: probed(name, output))
        for name, module in linear.named_linears(model)
    ]
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        logits = make_pass(model)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if logits is None:
        return {}
    unled: set[str] = set()
    if logits.grad_fn is not None:
        found = {id(leaf) for leaf in leaves(logits.grad_fn)}
        led = {name for at, (name, _) in probes.items() if at in found}
        unled = {name for name, _ in probes.values()} - led
    return {
        name: UNLED if name in unled else UNCALLED
        for name, _ in linear.named_linears(model)
        if is_passed_over(model, name, called - unled)
    }


def leaves(root: Any) -> Iterator[Tensor]:
    """The tensors that the graph of autograd behind a node ends in."""
    waiting, seen = [root], {root}
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            yield node.variable
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)


def uncalled_by_text(model: Any) -> dict[str, str]:
    """`uncalled` of any module. Empty for what is not a language model, or does not take text alone."""
    decoder = getattr(model, "main_input_name", None) == "input_ids" and not model.config.is_encoder_decoder
    if not (decoder and model.can_generate()):
        return {}
    try:
        return uncalled(model)
    except Exception:  # whatever a model's code raises that wants more than text
        return {}


def make_pass(model: Any) -> Tensor | None:
    """Logits of a few tokens. None where a model without content raises on the way."""
    first = next(model.parameters())
    gpu = [first.device] if first.is_cuda else []
    with torch.enable_grad(), torch.random.fork_rng(devices=gpu):
        ids = torch.zeros(1, TOKENS, dtype=torch.long, device=first.device)
        if not (first.is_meta or isinstance(first, FakeTensor)):
            try:
                return logits_of(model(input_ids=ids, use_cache=False))
            except (TypeError, ValueError) as error:
                raise LrftError(
                    f"{type(model).__name__} does not answer text alone: {str(error).strip().splitlines()[0]}",
                    "lrft trains causal language models on rows of text.",
                ) from error
        # Some models look into the mask to make theirs; one of four dimensions is handed on as it is.
        for mask in ({"attention_mask": ids.new_zeros(1, 1, 1, 1)}, {}):
            with imagined_kernels(model), contextlib.suppress(Exception):  # whatever a model's code may raise
                return logits_of(model(input_ids=ids, **mask, use_cache=False))
    return None


def logits_of(answer: Any) -> Tensor:
    found: Tensor = getattr(answer, "logits", answer)
    return found


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
