"""How a method's adapters are written as one of PEFT's own types, and read from a folder of it.

A method that PEFT has declares the name in `peft_type`, a class variable, and gives one `PeftType` beside its formulas:
which tensor of the file is which of ours, and which key of the configuration is which option. What the file names and
the table does not is refused by name, never ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Site

# Keys of every type that say where the layers are (their tensors' names tell which), or that matter to nothing here.
COMMON = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "runtime_config"),
    *("fan_in_fan_out", "init_weights"),
}
SIDES = {"d": "outputs", "k": "inputs", "r": "rank"}
# Keys of what adds to or replaces tensors that are no linear layer's weight.
BESIDE = ("bias", "lora_bias", "modules_to_save", "trainable_token_indices")


class Named(NamedTuple):
    """One tensor of a layer in PEFT's file.

    ending   of its name, after the layer's
    sides    one letter for each dimension: d outputs, k inputs, r rank, any other one for a side of its own
    turned   its last two dimensions are ours in the other order
    """

    ending: str
    sides: str
    turned: bool = False

    def turn(self, tensor: Tensor) -> Tensor:
        """From ours to the file's, and back."""
        return tensor.transpose(-1, -2).contiguous() if self.turned else tensor


@dataclass(frozen=True)
class PeftType:
    """Raises ValueError, from every method, with the reason why the type cannot say it."""

    name: str
    """the value of `peft_type`"""
    adapter: type[Adapter]
    """what it writes: this class and no other, so nothing that wraps it"""
    tensors: Mapping[str, Named]
    """our name of a tensor -> its name and shape in the file"""
    options: Mapping[str, str] = field(default_factory=dict)
    """our option -> key of the configuration with the same value"""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """key -> values beside which PEFT computes what we do; the first is written"""
    rank: str = "r"
    """key of the rank; empty: there is none"""
    alpha: str = ""
    """key of alpha, where the factor is alpha / r"""
    patterns: tuple[str, ...] = ()
    """of rank_pattern and alpha_pattern, those that it has"""
    dropout: str = ""
    """key of the dropout on the adapter's input"""
    training: tuple[str, ...] = ()
    """keys that matter to first values and training alone"""
    conv1d: bool = False
    """whether PEFT has it for layers that store (inputs, outputs)"""
    shared: Mapping[str, Named] = field(default_factory=dict)
    """our name of a tensor that all layers have in common -> its name in the file, without a layer's before it"""
    scales_bias: bool = False
    """whether PEFT changes a layer's bias as well, so that only layers without one are the same"""
    asks: str = ""
    """key that has to be set: what tells a folder of this method from others of its type"""
    beside: bool = False
    """whether the configuration has keys for biases and rows of tokens"""
    repeated: tuple[str, ...] = ()
    """endings of what a layer's part of the file has beside: repeated there, or empty, or of the training alone"""
    whole: bool = True
    """whether the file holds all that an adapter is made of; else `completed` makes the rest"""
    by_targets: bool = False
    """whether a file may name no layer, so that `target_modules` alone says which they are"""

    # writing

    def fits(self, adapter: Adapter) -> bool:
        return type(adapter) is self.adapter and (self.conv1d or not adapter.site.transposed)

    def unfit(self, adapters: Mapping[str, Any], weight: Callable[[Site], Tensor]) -> str:
        """The first layer of which PEFT would compute something else, and why, where it counts what the file leaves out
        from the base's weights; "" for none. weight: as in `completed`."""
        return ""

    def written(self, adapter: Adapter) -> dict[str, Tensor]:
        """ending -> tensor, for one layer."""
        held = {own: t for own, t in adapter.tensors().items() if self.whole or own in self.tensors}
        return {self.tensors[own].ending: self.tensors[own].turn(tensor) for own, tensor in held.items()}

    def shared_of(self, shared: nn.Module, sites: Sequence[Site]) -> dict[str, Tensor]:
        """ending -> tensor of what all layers have in common, buffers as well: a reader need not draw them again."""
        return {named.ending: getattr(shared, own) for own, named in self.shared.items()}

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        """Its own keys of the configuration. modules: its target_modules."""
        sites = {name: adapter.site for name, adapter in adapters.items()}
        said = {key: values[0] for key, values in self.fixed.items()}
        said |= {key: listed(getattr(method, option)) for option, key in self.options.items()}
        said |= self.ranks(sites)
        if self.dropout:
            said[self.dropout] = next(iter(sites.values())).dropout
        if self.conv1d:
            said["fan_in_fan_out"] = any(site.transposed for site in sites.values())
        return said

    def ranks(self, sites: Mapping[str, Site]) -> dict[str, Any]:
        if not self.rank:
            return {}
        ranks = {name: site.rank for name, site in sites.items()}
        said: dict[str, Any] = spread("rank", self.rank, ranks, "rank_pattern" in self.patterns)
        if self.alpha:
            alphas = {name: site.scale * site.rank for name, site in sites.items()}
            said |= spread("alpha", self.alpha, alphas, "alpha_pattern" in self.patterns)
        return said

    # reading

    def common(self, ending: str) -> str:
        """Our name of a tensor that all layers have in common, "" for none. ending: its name in the file, without the
        prefix."""
        return next((own for own, said in self.shared.items() if ending == said.ending), "")

    def refusal(self, config: Mapping[str, Any]) -> str:
        """The first setting that means something else, or that is not known; "" for none."""
        for key, values in self.fixed.items():
            if key in config and config[key] not in values:
                return f"{key} is {config[key]!r}, which lrft does not compute"
        for key in ("rank_pattern", "alpha_pattern"):
            if config.get(key) and key not in self.known():
                return f"{key} is set, which lrft does not read for this type"
        unknown = [key for key, value in config.items() if value and key not in self.known()]
        return f"{unknown[0]} is set, a setting that lrft does not know" if unknown else ""

    def known(self) -> set[str]:
        own = {*self.options.values(), *self.fixed, self.rank, self.alpha, self.dropout, *self.training, *self.patterns}
        return COMMON | own | set(BESIDE)

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our options as the configuration has them."""
        return {option: as_option(config[key]) for option, key in self.options.items() if key in config}

    def entries(self, method: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Names and options of what the folder holds. found: layer -> our names of its tensors."""
        return [(method, self.values(config))]

    def prepared(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
        """A layer's tensors of the file, by our names, in the shapes that `tensors` declares."""
        return dict(tensors)

    def site(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], depth: int | None) -> Site:
        """A layer's site; sides that no tensor tells are 0. tensors: by our names, as in the file."""
        seen: dict[str, int] = {}
        for own, tensor in tensors.items():
            for letter, size in zip(self.tensors[own].sides, tensor.shape, strict=True):
                if letter in SIDES and seen.setdefault(letter, size) != size:
                    raise ValueError(f"{name}: its tensors have {SIDES[letter]} {seen[letter]} and {size}")
        said = self.said_rank(name, config) if self.rank else None
        if said is not None and seen.setdefault("r", said) != said:
            raise ValueError(f"{name}: adapter_config.json says rank {said}, its tensors {seen['r']}")
        rank = int(seen.get("r", 1))
        scale = self.factor(name, config, rank)
        if not math.isfinite(scale):
            raise ValueError(f"{name}: adapter_config.json says alpha {scale * rank}")
        wide = bool(tensors) and all(t.dtype == torch.float64 for t in tensors.values())
        dtype = torch.float64 if wide else torch.float32
        return Site(name, seen.get("d", 0), seen.get("k", 0), rank, scale, depth, dtype=dtype)

    def said_rank(self, name: str, config: Mapping[str, Any]) -> int | None:
        return int(by_pattern(name, config.get("rank_pattern"), config[self.rank]))

    def factor(self, name: str, config: Mapping[str, Any], rank: int) -> float:
        return float(by_pattern(name, config.get("alpha_pattern"), config[self.alpha])) / rank if self.alpha else 1.0

    def read(self, tensors: Mapping[str, Tensor], site: Site) -> dict[str, Tensor]:
        """A layer's tensors as the adapter has them, from those of the file, by our names."""
        return {own: self.tensors[own].turn(tensor) for own, tensor in tensors.items()}

    def completed(
        self,
        method: Any,
        tensors: Mapping[str, Mapping[str, Tensor]],
        shared: Mapping[str, Tensor],
        sites: Sequence[Site],
        weight: Callable[[Site], Tensor],
    ) -> dict[str, dict[str, Tensor]]:
        """name -> all tensors of that layer's adapter, from those that `read` gave.

        method: the one of `entries`. shared: as `read_shared` gave it. sites: in the model's order. weight: the base's
        (d, k) of one, in float32 on the CPU, read when it is asked for."""
        return {name: dict(own) for name, own in tensors.items()}

    def read_shared(self, shared: Mapping[str, Tensor], sites: Sequence[Site]) -> dict[str, Tensor]:
        """What all layers have in common as it is kept here, when all sides are known."""
        return dict(shared)


def spread(word: str, key: str, values: Mapping[str, Any], pattern: bool) -> dict[str, Any]:
    """The first value under `key`, those of layers that have another one in a pattern. Raises ValueError where there
    is none."""
    first = next(iter(values.values()))
    others = {name: value for name, value in values.items() if value != first}
    if others and not pattern:
        raise ValueError(f"PEFT has one {word} for all layers of this type, and {next(iter(others))} has another")
    return {key: first, **({f"{word}_pattern": others} if pattern else {})}


def by_pattern(name: str, patterns: Mapping[str, Any] | None, value: Any) -> Any:
    """The value of a layer, by PEFT's own rule: the first key that is a regular expression for its name's end after a
    dot."""
    patterns = patterns or {}
    return next((said for key, said in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), value)


def listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def as_option(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def one_side(sides: Mapping[str, int]) -> int:
    """Raises ValueError for layers with blocks of several sides."""
    first = next(iter(sides.values()))
    other = next((name for name, side in sides.items() if side != first), None)
    if other is not None:
        raise ValueError(f"{other} has blocks of {sides[other]}, other layers of {first}: lrft has one side for all")
    return first
