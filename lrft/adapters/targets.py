"""Target module matching: patterns to sites. A pattern without a match is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lrft.adapters.adapter import Adapter, AdapterLinear, Site
from lrft.adapters.unfit import SHARED, is_in, sharing, unfit
from lrft.errors import Problem, RecipeError, nearest
from lrft.model import linear
from lrft.model.experts import ExpertLinear, stacks, unstack, word_of
from lrft.model.layers import head_of
from lrft.model.quantized import QuantizedLinear, count

Where = Callable[[str], str]
ALL_LINEAR = "all-linear"
SSM_LINEAR = "ssm-linear"
EXPERT_LINEAR = "expert-linear"
PRESETS = (ALL_LINEAR, SSM_LINEAR, EXPERT_LINEAR)
OUTSIDE = "outside the language model's decoder"
THIN = "one output or one input, so no low-rank update exists"
# Of a state-space block: the parameter that only such a block has, and the layers that ssm-linear leaves out. Both are
# read by fused kernels, or always, without being called: an adapter would be passed over. (x_proj is read so by the
# kernel of Mamba's training alone; where that is installed it is found not to be called.)
STATE_MATRIX = "A_log"
READ_BY_KERNELS = ("dt_proj", "out_proj")


def matches(pattern: str, name: str) -> bool:
    """Whether a module's dotted name is meant by `pattern`.

    "re:X" is a regular expression for the whole name; a pattern with * ? or [ is a glob for the whole name or for its
    end after a dot; any other word is the whole name or its end after a dot.
    """
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    if any(c in pattern for c in "*?["):
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
    return name == pattern or name.endswith(f".{pattern}")


def depth_of(name: str) -> int | None:
    """The block's index: the first number in a dotted name."""
    return next((int(word) for word in name.split(".") if word.isdigit()), None)


@dataclass(frozen=True)
class Choice:
    """The linear layers that a recipe means, by name, in the model's order."""

    found: dict[str, nn.Module]
    left_out: dict[str, str]
    """targeted layers that cannot have an adapter -> the reason"""

    def lines(self) -> list[str]:
        """What is left out, a line for each reason."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            by_reason.setdefault(reason, []).append(name)
        return [
            f"{len(names)} linear layer{'s' * (len(names) > 1)} ({' '.join(module_names(names))}): {reason}"
            for reason, names in by_reason.items()
        ]


def chosen_linears(
    model: nn.Module, adapter: Any, where: Where, uncalled: Mapping[str, str] = {}
) -> dict[str, nn.Module]:
    """What `choose` has found."""
    return choose(model, adapter, where, uncalled).found


def choose(model: nn.Module, adapter: Any, where: Where, uncalled: Mapping[str, str] = {}) -> Choice:
    """The linear layers that `adapter` (a recipe's adapter section) targets.

    Stacks of experts that it means show their experts as linear layers from then on.
    A layer that cannot carry an adapter is left out where all-linear means it, or a pattern that means others too.
    uncalled: names of layers that text is known not to reach -> why, as of `lrft.adapters.reach.uncalled`.
    Raises RecipeError with every pattern that matches nothing, or nothing that can carry an adapter, and every layer
    index outside the model.
    """
    show_experts(model, adapter)
    linears = dict(linear.named_linears(model))
    problems = [
        *_unmatched(model, linears, adapter.target_modules, where("adapter.target_modules"), "target_modules"),
        *_layers_outside(linears, adapter.layers, where),
    ]
    excludes_given = "exclude_modules" in adapter.model_fields_set
    if excludes_given:
        problems += _unmatched(
            model, linears, adapter.exclude_modules, where("adapter.exclude_modules"), "exclude_modules"
        )
    if problems:
        raise RecipeError(problems)

    head = output_head_names(model, linears)
    decoder = decoder_prefix(model)
    reasons = unfit(model, linears, uncalled, in_full(model, adapter))
    ssm = state_space_linears(model, linears) if SSM_LINEAR in adapter.target_modules else frozenset()

    experts = {name for name, module in linears.items() if isinstance(module, ExpertLinear)}

    def named(name: str) -> bool:
        if name in experts:
            return any(means_stack(p, name.rpartition(".")[0]) for p in adapter.target_modules)
        return any(p not in PRESETS and matches(p, name) for p in adapter.target_modules)

    def meant(name: str) -> bool:
        everything = (ALL_LINEAR in adapter.target_modules and name not in head | experts) or name in ssm
        everything = everything or (EXPERT_LINEAR in adapter.target_modules and name in experts)
        excluded = any(matches(p, name) for p in adapter.exclude_modules)
        # lm_head is excluded by default; naming it as a target is a decision against that default.
        kept = not excluded or (named(name) and not excludes_given)
        inside = adapter.layers == "all" or depth_of(name) in adapter.layers
        return (named(name) or everything) and kept and inside

    found, left_out = {}, {}
    for name, module in linears.items():
        if not meant(name):
            continue
        reason = reasons.get(name)
        if reason is None and not named(name):
            reason = _unfit_for_all(name, module, decoder)
        if reason is None:
            found[name] = module
        else:
            left_out[name] = reason
    problems = _only_unfit(model, adapter, found, left_out, where)
    if not found and not problems:
        text = "adapter.target_modules, exclude_modules and layers together select no linear layer"
        problems = [Problem(where("adapter.target_modules"), text)]
    if problems:
        raise RecipeError(problems)
    return Choice(found, left_out)


def in_full(model: nn.Module, adapter: Any) -> list[str]:
    """Names of the modules that adapter.modules_to_save means, without those inside of one of them."""
    found: list[str] = []
    for name, module in model.named_modules():
        if not name or next(module.parameters(), None) is None or is_in(name, found):
            continue
        if any(_matches_or_none(pattern, name) for pattern in adapter.modules_to_save):
            found.append(name)
    return found


def _matches_or_none(pattern: str, name: str) -> bool:
    """Whether a pattern means a module; one that is no regular expression, which is told elsewhere, means none."""
    with suppress(re.error):
        return matches(pattern, name)
    return False


def means_stack(pattern: str, name: str) -> bool:
    """Whether a pattern means the stacked weights MODULE.WORD of experts. It has to name the module: down_proj alone
    means the linear layers of that name."""
    if pattern in PRESETS:
        return False
    return name.split(".")[-2] in pattern and _matches_or_none(pattern, name)


def meant_stacks(model: nn.Module, adapter: Any) -> list[str]:
    """Names of the stacks of experts that adapter.target_modules means."""
    everything = EXPERT_LINEAR in adapter.target_modules
    return [
        module
        for module, weights in stacks(model).items()
        if everything or any(means_stack(p, name) for p in adapter.target_modules for name in weights)
    ]


def show_experts(model: nn.Module, adapter: Any) -> None:
    """Let the stacks of experts that adapter.target_modules means show their experts as linear layers, in place."""
    unstack(model, meant_stacks(model, adapter))


def _unfit_for_all(name: str, module: nn.Module, decoder: str) -> str | None:
    """Why all-linear leaves out a layer that could carry an adapter."""
    if not name.startswith(decoder):
        return OUTSIDE
    return THIN if min(linear.shape(module)) == 1 else None


def _only_unfit(
    model: nn.Module, adapter: Any, found: Mapping[str, Any], left_out: Mapping[str, str], where: Where
) -> list[Problem]:
    """Patterns that mean layers of which none can carry an adapter."""
    shared = sharing(model)
    problems = []
    for pattern in adapter.target_modules:
        everything = pattern in PRESETS
        if any(everything or matches(pattern, name) for name in found):
            continue
        names = [name for name in left_out if everything or matches(pattern, name)]
        for reason in dict.fromkeys(left_out[name] for name in names):
            first = next(name for name in names if left_out[name] == reason)
            text = f"{pattern} matches {first}, which cannot have an adapter: {reason}"
            if reason == SHARED:
                text = (
                    f"{first} shares its weight with {shared[first]} in this model; "
                    "an adapter on it could not be merged. Leave it out"
                )
            problems.append(Problem(where("adapter.target_modules"), f"adapter.target_modules: {text}"))
    return problems


def output_head_names(model: nn.Module, linears: Mapping[str, nn.Module]) -> set[str]:
    """Names of the matrix that makes logits. all-linear leaves it out, as the field does."""
    head = head_of(model) if hasattr(model, "get_output_embeddings") else None
    return {name for name, module in linears.items() if module is head}


def state_space_linears(model: nn.Module, linears: Mapping[str, nn.Module]) -> frozenset[str]:
    """Names of the linear layers of Mamba's and Mamba-2's blocks that ssm-linear means: in_proj, and Mamba's x_proj.

    A block is known by its state matrix. Gated delta nets, which have one too, have no single in_proj.
    """
    blocks = {
        name
        for name, module in model.named_modules()
        if STATE_MATRIX in dict(module.named_parameters(recurse=False)) and f"{name}.in_proj" in linears
    }
    words = {name: name.rpartition(".") for name in linears}
    return frozenset(
        name for name, (block, _, word) in words.items() if block in blocks and word not in READ_BY_KERNELS
    )


def decoder_prefix(model: nn.Module) -> str:
    """What the names of the language model's own layers begin with, "" for all of them.

    A model that also sees or hears has towers of linear layers that no text ever reaches: all-linear leaves them out.
    """
    get: Any = getattr(model, "get_decoder", None)
    decoder = get() if get is not None else None
    embeddings: Any = getattr(model, "get_input_embeddings", None)
    if decoder is None or not any(module is embeddings() for module in decoder.modules()):
        return ""  # what transformers calls decoder is the layer that makes logits, in some
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return f"{name}." if name else ""


def stacked_share(model: nn.Module) -> float:
    """Share of the base's parameters that `outside_linears` are."""
    ours = {id(p) for m in model.modules() if isinstance(m, Adapter) for p in m.parameters()}
    total = count(model) - sum(p.numel() for p in model.parameters() if id(p) in ours)
    outside = sum(p.numel() for p in outside_linears(model).values())
    return outside / total if total else 0.0


def outside_linears(model: nn.Module) -> dict[str, nn.Parameter]:
    """Tensors of two or more dimensions in the decoder that no linear layer, embedding or convolution holds.

    Most are the stacked weights of experts.
    """
    known = nn.Linear | QuantizedLinear | nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d
    inside = {
        id(p)
        for module in model.modules()
        if isinstance(module, known | AdapterLinear) or linear.is_linear(module)
        for p in module.parameters()
    }
    decoder = decoder_prefix(model)
    return {
        name: p
        for name, p in model.named_parameters()
        if p.ndim > 1 and id(p) not in inside and name.startswith(decoder)
    }


def site_of(name: str, module: nn.Module, *, rank: int, scale: float, dropout: float) -> Site:
    d, k = linear.shape(module)
    dtype = torch.float64 if linear.dtype(module) == torch.float64 else torch.float32
    transposed = linear.stored_transposed(module)
    return Site(name, d, k, rank, scale, depth_of(name), dropout, transposed, dtype)


def module_names(names: Iterable[str]) -> list[str]:
    """The last words of module names, sorted: how people call linear layers."""
    return sorted({word_of(name) for name in names})


def _unmatched(
    model: nn.Module, linears: Mapping[str, nn.Module], patterns: Sequence[str], place: str, key: str
) -> list[Problem]:
    problems = []
    for pattern in patterns:
        if pattern in PRESETS and key == "target_modules":
            if pattern == SSM_LINEAR and not state_space_linears(model, linears):
                said = "means blocks of Mamba or Mamba-2, and this model has none"
                problems.append(Problem(place, f"adapter.{key}: {pattern} {said}"))
            if pattern == EXPERT_LINEAR and not any(isinstance(m, ExpertLinear) for m in linears.values()):
                said = "means experts that are stacked in one tensor, and this model has none that can have adapters"
                problems.append(Problem(place, f"adapter.{key}: {pattern} {said}"))
            continue
        try:
            if any(matches(pattern, name) for name in linears):
                continue
            shown = (name.rpartition(".")[0] for name, m in linears.items() if isinstance(m, ExpertLinear))
            if any(means_stack(pattern, name) for name in dict.fromkeys(shown)):
                continue
        except re.error as error:
            problems.append(Problem(place, f"adapter.{key}: {pattern!r} is not a valid regular expression: {error}"))
            continue
        other = next((type(m).__name__ for n, m in model.named_modules() if n and matches(pattern, n)), None)
        words = module_names(linears)
        if other is not None:
            article = "an" if other[0] in "AEIOU" else "a"
            said = f"matches {article} {other}, which is not a linear layer"
        else:
            said = "matches no module of this model"
            close = nearest(pattern, words)
            said += f". Close: {close[0]}" if close else ""
        problems.append(Problem(place, f"adapter.{key}: {pattern} {said}. Linear layers: {', '.join(words)}"))
    return problems


def _layers_outside(linears: Mapping[str, nn.Module], layers: Any, where: Where) -> list[Problem]:
    if layers == "all":
        return []
    depths = {depth for name in linears if (depth := depth_of(name)) is not None}
    outside = sorted(set(layers) - depths)
    if not outside:
        return []
    text = f"adapter.layers: {', '.join(map(str, outside))} not in this model, whose layers are {_span(depths)}"
    return [Problem(where("adapter.layers"), text)]


def _span(depths: set[int]) -> str:
    return f"{min(depths)} to {max(depths)}" if depths else "not numbered"
