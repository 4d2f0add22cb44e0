"""Import of LoRA folders written by PEFT: sites, scaling factors and tensors.

What PEFT multiplies into a weight is taken from its configuration alone: rank from the tensors, alpha from
`lora_alpha` and `alpha_pattern`, their quotient from `use_rslora`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attached import Attached
from lrft.adapters.peft_beside import by_place, is_twice, names_in
from lrft.adapters.peft_experts import split_stacks
from lrft.adapters.peft_export import PEFT_NAMES, PEFT_PREFIX, PEFT_TENSORS
from lrft.adapters.storage import SavedAdapter, load_saved, read_adapter
from lrft.adapters.targets import depth_of
from lrft.errors import CheckFailed, UsageError
from lrft.model import linear
from lrft.model.experts import WORDS, is_stored_transposed, stack_of
from lrft.utils import files

CONFIG = "adapter_config.json"
SUPPORTED = "LoRA folders of PEFT (peft_type LORA, with rank_pattern, alpha_pattern, use_rslora, use_dora) can be read."
# Starts that leave the base as it is. The others of PEFT change it, so their factors are no update of the base.
KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")

VARIANTS = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config"),
    *("use_bdlora", "use_qalora", "velora_config"),
)
# What is read, what chooses the layers (their tensors' names tell which), and what matters to training alone.
KNOWN = {
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights"),
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("base_model_name_or_path", "revision", "fan_in_fan_out", "task_type", "auto_mapping", "peft_version"),
    *("lora_dropout", "inference_mode", "runtime_config", "eva_config", "ensure_weight_tying", "megatron_core"),
    *("loftq_config", "corda_config", "lora_ga_config", "qalora_group_size"),
}
# What is trained beside the layers, and read.
TAKEN = ("bias", "modules_to_save", "trainable_token_indices")
# What adds to or replaces tensors in another way.
BESIDE = ("lora_bias",)


@dataclass(frozen=True)
class PeftFolder:
    """`left_out`: tensors of the file that change no linear layer's weight, or replace one as a whole. `beside`: what
    the configuration says of such tensors."""

    saved: SavedAdapter
    left_out: tuple[str, ...]
    beside: tuple[str, ...]


def is_peft_folder(folder: Path) -> bool:
    """Whether PEFT wrote the folder and lrft did not."""
    return (folder / CONFIG).is_file() and not (folder / "lrft.json").is_file()


def read_any(folder: Path) -> SavedAdapter:
    """An adapter folder of lrft or PEFT, the whole of it. Raises as `read_adapter` and `read_peft`, and UsageError for
    one of PEFT with tensors beside the updates of linear layers.

    Of one that PEFT wrote it is not known yet whether the base stores a weight transposed: see `placed`.
    """
    if not is_peft_folder(folder):
        return read_adapter(folder)
    found = read_peft(folder)
    if found.beside or found.left_out:
        more = f" and {len(found.left_out) - 3} more" * (len(found.left_out) > 3)
        tensors = f" (tensors: {', '.join(found.left_out[:3])}{more})" * bool(found.left_out)
        said = f"{', '.join(found.beside)} is set" if found.beside else "it holds more than updates of linear layers"
        raise UsageError(
            f"{folder}: {said}{tensors}, which lrft cannot load: it supports only updates of linear layers",
            "Merge such an adapter with PEFT itself: PeftModel.from_pretrained(base, folder).merge_and_unload().",
        )
    return found.saved


def load_any(model: nn.Module, folder: Path) -> Attached:
    """Attach a saved adapter of lrft or PEFT to `model`, in place. Raises as `read_any`, CheckFailed where it does not
    fit the model."""
    return load_saved(model, placed(read_any(folder), model))


def read_peft(folder: Path) -> PeftFolder:
    """Raises UsageError for a kind of adapter that is not supported, CheckFailed for a damaged one.

    Whether the base stores a weight transposed is not known yet: see `placed`.
    """
    config = files.read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise CheckFailed(f"{folder / CONFIG} does not describe an adapter")
    refuse_unsupported(folder, config)
    if not (folder / PEFT_TENSORS).is_file() and (folder / "adapter_model.bin").is_file():
        raise UsageError(
            f"{folder} has its tensors only as a pickle (adapter_model.bin); loading a pickle can execute arbitrary "
            f"code",
            "Save the adapter again with a recent PEFT, which writes adapter_model.safetensors.",
        )
    flat = files.read_tensors(folder / PEFT_TENSORS)
    found, left_out = by_site(flat)
    if not found:
        raise UsageError(f"{folder} adapts no linear layer (tensors: {', '.join(left_out[:3]) or 'none'})", SUPPORTED)
    try:
        names, own = names_in(config, left_out)
        found = split_stacks(found, config)
        sites = [site_of(name, tensors, config) for name, tensors in found.items()]
    except (KeyError, AttributeError, TypeError, ValueError, ArithmeticError, re.error) as error:
        raise CheckFailed(f"{folder}: {error}") from None
    words = ["lora", *(["dora"] if "magnitude" in next(iter(found.values())) else [])]
    info = {
        "base": {"name": config.get("base_model_name_or_path"), "revision": config.get("revision")},
        "methods": [{"name": word, "options": {}} for word in words],
        "seed": 0,
        **names.to_json(),
    }
    tensors = {**found, **by_place(names, flat, own)}
    left_out = [key for key in left_out if key not in own and not is_twice(key)]
    saved = SavedAdapter(folder, info, sites, compose.compose((word, {}) for word in words), tensors)
    try:
        for site in sites:
            saved.build(site)
    except (ValueError, RuntimeError) as error:
        raise CheckFailed(f"{folder / PEFT_TENSORS}: {error}") from None
    beside = [f"{key}: {config[key]}" for key in BESIDE if config.get(key)]
    if config.get("ensure_weight_tying") and names.full:
        beside.append(f"ensure_weight_tying with modules_to_save: {config['modules_to_save']}")
    return PeftFolder(saved, tuple(left_out), tuple(beside))


def placed(saved: SavedAdapter, model: nn.Module) -> SavedAdapter:
    """The adapter with its sites as `model` stores them, which can be without weights. lrft's own say it themselves.

    The configuration's `fan_in_fan_out` is not asked: PEFT keeps one word for all layers, that of the last.
    """
    if "format" in saved.info:
        return saved
    stored = {name for name, module in linear.named_linears(model) if linear.stored_transposed(module)}
    for name in (site.name for site in saved.sites):
        place = stack_of(name)
        if place is not None and is_stored_transposed(model, place[0]):
            stored.add(name)
    return replace(saved, sites=[replace(site, transposed=site.name in stored) for site in saved.sites])


def refuse_unsupported(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UsageError(f"{folder} is a PEFT adapter of type {kind}, which is not supported", SUPPORTED)
    start = config.get("init_lora_weights")
    if start not in KEEPS_BASE:
        raise UsageError(
            f"{folder}: with init_lora_weights {start!r} PEFT modifies the base weights: A and B are not an update "
            f"of the original base",
            "Save it with PEFT's path_initial_model_for_weight_conversion, which writes an update of the base.",
        )
    for key in VARIANTS:
        if config.get(key):
            raise UsageError(f"{folder}: {key} is set, a LoRA variant that is not supported", SUPPORTED)
    odd = [
        name for name in config.get("target_parameters") or () if str(name).rpartition(".")[2] not in ("weight", *WORDS)
    ]
    if odd:
        raise UsageError(f"{folder}: target_parameters names {odd[0]}, no weight of layers or of experts", SUPPORTED)
    unknown = [key for key, value in config.items() if value and key not in {*KNOWN, *VARIANTS, *TAKEN, *BESIDE}]
    if unknown:
        raise UsageError(f"{folder}: {unknown[0]} is set, a setting that lrft does not know", SUPPORTED)


def by_site(flat: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """(site name -> A, B and perhaps magnitude; names of the tensors that belong to no linear layer)."""
    found: dict[str, dict[str, Tensor]] = {}
    left_out = []
    for key, tensor in flat.items():
        word = next((word for word, ending in PEFT_NAMES.items() if key.endswith(f".{ending}")), None)
        if word is None or not key.startswith(PEFT_PREFIX) or tensor.ndim != (1 if word == "magnitude" else 2):
            left_out.append(key)
        else:
            found.setdefault(key[len(PEFT_PREFIX) : -len(PEFT_NAMES[word]) - 1], {})[word] = tensor
    return found, left_out


def site_of(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Site:
    """Raises ValueError or KeyError naming what does not go together."""
    if not tensors.keys() >= {"A", "B"}:
        raise ValueError(f"{name} has only lora_{'A' if 'A' in tensors else 'B'}")
    rank, k = tensors["A"].shape
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    named = f"{name}.weight" if f"{name}.weight" in (config.get("target_parameters") or ()) else name
    named = named.rpartition(".")[0] if stack_of(name) is not None else named
    said = ranks.get(pattern_for(named, ranks), config["r"])
    if said != rank or tensors["B"].shape[1] != rank:
        raise ValueError(f"{name}: {CONFIG} says rank {said}, its tensors {rank} and {tensors['B'].shape[1]}")
    alpha = alphas.get(pattern_for(named, alphas), config["lora_alpha"])
    scale = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise ValueError(f"{name}: {CONFIG} says alpha {alpha}")
    dtype = torch.float64 if tensors["A"].dtype == torch.float64 else torch.float32
    return Site(name, len(tensors["B"]), k, rank, scale, depth_of(name), dtype=dtype)


def pattern_for(name: str, patterns: Mapping[str, Any]) -> str:
    """The first key that means the module, by PEFT's own rule: a regular expression for its name's end after a dot."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), name)
