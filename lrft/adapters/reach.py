"""Find the linear layers that text reaches, by running a few tokens: called, with a gradient from the logits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lrft.model import linear
from lrft.model.fake_kernels import imagined_kernels
from lrft.model.head import is_headless
from lrft.model.layers import logits_of_text
from lrft.model.load import position_limit
from lrft.utils.divided import is_divided

# Some layers act on long rows only: those that compress tokens which lie far back. The long pass is made where the
# short one leaves a question open.
TOKENS, MANY_TOKENS = 8, 1024
# What was read, by its identity, which is its own as long as it is held, and the names of its readers.
Groups = dict[int, tuple[Tensor, list[str]]]
UNCALLED = "not called in a forward pass over text"
UNLED = "no gradient leads from the logits to its output in a pass over text"


@dataclass(frozen=True)
class Reach:
    """The linear layers that a training pass over text does not train, by name."""

    never: dict[str, str]
    """those that no pass can train -> why"""
    sometimes: frozenset[str] = frozenset()
    """those that some rows reach and others do not: what acts on long rows only, and experts that tokens choose"""
    together: tuple[tuple[str, ...], ...] = ()
    """those that read one tensor, group by group, in the order of their calls"""


def uncalled(model: Any) -> dict[str, str]:
    """`reach(model).never`"""
    return reach(model).never


def reach(model: Any) -> Reach:
    """What text reaches of a language model.

    No pass reaches the towers of a model that also sees or hears, cross-attention to what they make, layers whose
    weight the model reads without calling them, and those whose output only decides a choice, as that of the indexers
    of sparse attention. `model` (of transformers) may be real, fake or on the meta device, and is left as it was. Empty
    where a model without content cannot make the pass: what it computes depends on the content.
    """
    groups: Groups = {}
    called, unled = in_a_pass(model, TOKENS, groups)
    if not called:
        return Reach({})
    short = called - unled
    if unled and (longer := in_a_pass(model, longest(model)))[0]:
        called, unled = longer
    names = [name for name, _ in linear.named_linears(model)]
    passed_over = {name for name in names if is_passed_over(model, name, called - unled)}
    never = {name: UNLED if name in unled else UNCALLED for name in names if name in passed_over}
    long = (called - unled) - short
    some = (name for name in names if name not in passed_over and (name in long or is_chosen(model, name, short)))
    together = (tuple(dict.fromkeys(names)) for _, names in groups.values())
    return Reach(never, frozenset(some), tuple(names for names in together if len(names) > 1))


def is_chosen(model: nn.Module, name: str, called: set[str]) -> bool:
    """Whether a layer belongs to a list inside a block of which not all are called, as experts are.

    Of the list of the blocks themselves all are called by any row.
    """
    words = name.split(".")
    numbers = [at for at, word in enumerate(words) if word.isdigit()]
    return any(not called.issuperset(alike(model, ".".join(words[: at + 1]))) for at in numbers[1:])


def longest(model: Any) -> int:
    """How many tokens the long pass has."""
    config = getattr(model, "config", None)
    return min(MANY_TOKENS, (None if config is None else position_limit(config)) or MANY_TOKENS)


def in_a_pass(model: Any, tokens: int, groups: Groups | None = None) -> tuple[set[str], set[str]]:
    """Names of the modules that a pass calls, and of the linear layers among them to which no gradient leads.

    Both are empty where a model without content cannot make the pass. groups: filled with what linear layers read.
    """
    called: set[str] = set()
    probes: list[tuple[str, Tensor]] = []

    def probed(name: str, output: Any) -> Any:
        """The output with a zero added, which is found again in the graph of the logits."""
        if not (isinstance(output, Tensor) and output.is_floating_point()):
            return output
        probe = output.new_zeros((), requires_grad=True)
        probes.append((name, probe))
        return output + probe

    def read(name: str, given: Any) -> None:
        if groups is not None and given and isinstance(given[0], Tensor):
            groups.setdefault(id(given[0]), (given[0], []))[1].append(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: called.add(name))
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    hooks += [
        module.register_forward_hook(lambda _, __, output, name=name: probed(name, output))
        for name, module in linear.named_linears(model)
    ]
    hooks += [
        module.register_forward_pre_hook(lambda _, given, name=name: read(name, given))
        for name, module in linear.named_linears(model)
    ]
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        logits = make_pass(model, tokens)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if logits is None:
        return set(), set()
    if logits.grad_fn is None:
        return called, set()
    found = {id(leaf) for leaf in leaves(logits.grad_fn)}
    led = {name for name, probe in probes if id(probe) in found}
    return called, {name for name, _ in probes} - led


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
    """`uncalled` of any module. Empty for what is not a language model, with its head or without, or does not take text
    alone, and for a model that is divided over devices, whose pass would gather it."""
    decoder = getattr(model, "main_input_name", None) == "input_ids" and not model.config.is_encoder_decoder
    if not (decoder and (model.can_generate() or is_headless(model))) or any(is_divided(p) for p in model.parameters()):
        return {}
    try:
        return uncalled(model)
    except Exception:  # whatever a model's code raises that wants more than text
        return {}


def make_pass(model: Any, tokens: int) -> Tensor | None:
    """Logits of a row. None where a model without content raises on the way."""
    first = next(model.parameters())
    gpu = [first.device] if first.is_cuda else []
    # The graph is only walked: what its backward pass would need is not kept.
    nothing = torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda kept: kept)
    with torch.enable_grad(), nothing, torch.random.fork_rng(devices=gpu):
        ids = torch.zeros(1, tokens, dtype=torch.long, device=first.device)
        if not (first.is_meta or isinstance(first, FakeTensor)):
            return logits_of_text(model, ids)
        # Some models look into the mask to make theirs; one of four dimensions is handed on as it is.
        # Sparse attention chooses by a mask of all pairs.
        pairs = ids.new_ones(1, 1, tokens, tokens, dtype=torch.bool)
        for more in ({"attention_mask": ids.new_zeros(1, 1, 1, 1)}, {"attention_mask": pairs}, {}):
            with imagined_kernels(model), contextlib.suppress(Exception):  # whatever a model's code may raise
                return logits_of_text(model, ids, **more)
    return None


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
