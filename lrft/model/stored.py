"""Mapping from parameters of a loaded model to tensors in its files.

transformers renames, splits and joins tensors at loading: those of older checkpoints, of the language part of a larger
model, of experts that it stacks. Its own rules are asked here, tensor by tensor, in the order in which it asks them
(`transformers.core_model_loading`), so that what is written back under a tensor's name is what it will load.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Source:
    """Where a weight comes from. `tensors`: names in the files. `as_it_is`: it is that one tensor, unchanged."""

    tensors: tuple[str, ...]
    as_it_is: bool


class Stored:
    """The tensors of a folder as transformers would load them into `model`.

    model    of transformers, without adapters; on any device
    names    of all tensors in the folder's files
    """

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        rules = get_model_conversion_mapping(model)
        self.renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self.converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self.prefix = model.base_model_prefix
        self.known = parameter_names(model)
        self.sources = self.weight_sources(names)

    def source(self, name: str) -> Source | None:
        """Where the parameter `name` is read from. None: no tensor of the files goes there.

        The name may also be that of a larger or smaller model around the same layers: it is then translated as if it
        were a tensor's, or is the end of one name alone.
        """
        found = self.sources.get(name) or self.sources.get(self.destination(name)[0])
        if found is None:
            longer = [known for known in self.sources if known.endswith("." + name.removeprefix("model."))]
            found = self.sources[longer[0]] if len(longer) == 1 else None
        return found

    def destination(self, tensor: str) -> tuple[str, str | None]:
        """The parameter that a tensor of the files goes to, and the pattern of its conversion, None without one."""
        from transformers.core_model_loading import rename_source_key

        found = rename_source_key(tensor, self.renamings, self.converters, self.prefix, self.known)
        if found[0] not in self.known and tensor in self.known:  # stored as the model has it already
            return rename_source_key(tensor, [], [], self.prefix, self.known)
        return found

    def weight_sources(self, names: Iterable[str]) -> dict[str, Source]:
        """Parameter -> where it is read from."""
        from transformers.core_model_loading import dot_natural_key

        targets = {pattern: rule.target_patterns for rule in self.converters for pattern in rule.source_patterns}
        plain: dict[str, list[str]] = {}
        made: dict[str, list[str]] = {}
        for tensor in sorted(names, key=dot_natural_key):  # some rules depend on what they have met before
            name, pattern = self.destination(tensor)
            if pattern is None:
                plain.setdefault(name, []).append(tensor)
                continue
            for target in targets[pattern]:
                made.setdefault(name.replace(targets[pattern][0], target), []).append(tensor)
        sources = {name: Source(tuple(tensors), len(tensors) == 1) for name, tensors in plain.items()}
        return sources | {name: Source(tuple(tensors), False) for name, tensors in made.items()}


def parameter_names(model: Any) -> dict[str, bool]:
    """Names of all parameters and saved buffers, as transformers looks them up; a quantised layer has its weight's."""
    from lrft.model import linear

    weights = (f"{name}.weight" for name, _ in linear.named_linears(model))
    return dict.fromkeys([*model.state_dict(), *weights], True)
