"""Import of folders written by PEFT: sites, factors, options and tensors.

Which method reads a folder is declared by the methods (`Method.peft_type`), how by their `PeftType`. Some types do not
say a layer's sides in their tensors: those are taken from the model, by `placed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lrft import registry
from lrft.adapters import compose
from lrft.adapters.adapter import AdapterLinear, Site
from lrft.adapters.attached import SHARED, Attached
from lrft.adapters.base_weights import Stored, weight_of
from lrft.adapters.peft_alone import ALONE, as_lora
from lrft.adapters.peft_beside import by_place, is_twice, names_in
from lrft.adapters.peft_experts import split_stacks
from lrft.adapters.peft_export import PEFT_PREFIX, PEFT_TENSORS, SHARED_PREFIX
from lrft.adapters.peft_targets import refusal as unread
from lrft.adapters.peft_targets import targeted
from lrft.adapters.peft_type import PeftType
from lrft.adapters.storage import SavedAdapter, load_saved, read_adapter
from lrft.adapters.targets import depth_of
from lrft.errors import CheckFailed, UsageError
from lrft.model import linear
from lrft.model.experts import is_stored_transposed, stack_of
from lrft.utils import files
from lrft.utils.adapter_folders import CONFIG, is_peft_folder

# Keys of what adds to or replaces tensors in a way that is not read.
REFUSED = ("lora_bias",)
# What to do in the place of a type that is not read.
INSTEAD = {
    "XLORA": "it mixes LoRAs that were trained before, by a classifier over the model; lrft combine makes one of them",
    "BEFT": "it adds vectors to the outputs of layers, also of such that have no bias; train adapter.biases instead",
    "POLY": "it chooses by the id of a task, which rows do not have here; train an adapter for each task",
}


@dataclass(frozen=True)
class PeftFolder:
    """`left_out`: tensors of the file that change no linear layer's weight, or replace one as a whole. `beside`: what
    the configuration says of such tensors."""

    saved: SavedAdapter
    left_out: tuple[str, ...]
    beside: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """Tensors of the file, by our names: of each layer, in common, and those that belong to no linear layer."""

    layers: dict[str, dict[str, Tensor]]
    shared: dict[str, Tensor]
    left_out: list[str]


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

    Whether the base stores a weight transposed is not known yet, nor are sides that no tensor tells: see `placed`.
    """
    config = files.read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise CheckFailed(f"{folder / CONFIG} does not describe an adapter")
    if config.get("peft_type") in ALONE:
        return read_alone(folder, config)
    method, kind = method_for(folder, config)
    flat = stored_tensors(folder)
    found = sorted_out(flat, kind)
    if kind.by_targets and found.shared and not found.layers:
        if said := unread(config):
            raise UsageError(f"{folder / CONFIG}: {said}", supported())
    elif not found.layers:
        listed = ", ".join(found.left_out[:3]) or "none"
        raise UsageError(f"{folder} adapts no linear layer (tensors: {listed})", supported())
    try:
        names, own = names_in(config, found.left_out)
        layers = {name: kind.prepared(name, mine, config) for name, mine in split_stacks(found.layers, config).items()}
        sites = [kind.site(name, mine, config, depth_of(name)) for name, mine in layers.items()]
        entries = kind.entries(method, config, layers)
        tensors = {site.name: kind.read(layers[site.name], site) for site in sites}
        tensors |= by_place(names, flat, own)
        composition = compose.compose(entries)
    except (KeyError, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError, re.error) as error:
        raise CheckFailed(f"{folder}: {error}") from None
    if found.shared:
        tensors[SHARED] = found.shared
    info = {
        "peft_type": kind.name,
        "base": {"name": config.get("base_model_name_or_path"), "revision": config.get("revision")},
        "methods": [{"name": name, "options": options} for name, options in entries],
        "seed": 0,
        "config": config,
        **names.to_json(),
    }
    saved = SavedAdapter(folder, info, sites, composition, tensors)
    if is_whole(saved, kind):
        refuse_unbuildable(saved)
    beside = [f"{key}: {config[key]}" for key in REFUSED if config.get(key)]
    if config.get("ensure_weight_tying") and names.full:
        beside.append(f"ensure_weight_tying with modules_to_save: {config['modules_to_save']}")
    left_out = [key for key in found.left_out if key not in own and not is_twice(key)]
    return PeftFolder(saved, tuple(left_out), tuple(beside))


def read_alone(folder: Path, config: Mapping[str, Any]) -> PeftFolder:
    """A folder that adapts no layer, and trains modules or rows alone. Raises as `read_peft`."""
    flat = stored_tensors(folder)
    try:
        said, tensors = as_lora(config, flat)
        names, own = names_in(said, tensors)
        held = by_place(names, tensors, own)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise CheckFailed(f"{folder}: {error}") from None
    info = {
        "peft_type": config["peft_type"],
        "base": {"name": config.get("base_model_name_or_path"), "revision": config.get("revision")},
        "methods": [{"name": registry.DEFAULT_METHOD, "options": {}}],
        "seed": 0,
        **names.to_json(),
    }
    composition = compose.compose([(registry.DEFAULT_METHOD, {})])
    left_out = [key for key in tensors if key not in own and not is_twice(key)]
    return PeftFolder(SavedAdapter(folder, info, [], composition, held), tuple(left_out), ())


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder of PEFT. Raises UsageError for a pickle."""
    if not (folder / PEFT_TENSORS).is_file() and (folder / "adapter_model.bin").is_file():
        raise UsageError(
            f"{folder} has its tensors only as a pickle (adapter_model.bin); loading a pickle can execute arbitrary "
            f"code",
            "Save the adapter again with a recent PEFT, which writes adapter_model.safetensors.",
        )
    return files.read_tensors(folder / PEFT_TENSORS)


def method_for(folder: Path, config: Mapping[str, Any]) -> tuple[str, PeftType]:
    """The method whose adapters the folder holds. Raises UsageError where none reads it, naming the setting."""
    word = config.get("peft_type")
    kinds = list(readers(word))
    own = [(name, kind) for name, kind in kinds if kind.asks and config.get(kind.asks)]
    kinds = own or [(name, kind) for name, kind in kinds if not kind.asks]
    if not kinds:
        why = f": {INSTEAD[word]}" if word in INSTEAD else ""
        raise UsageError(f"{folder} is a PEFT adapter of type {word}, which is not supported{why}", supported())
    refused = {name: kind.refusal(config) for name, kind in kinds}
    fitting = [(name, kind) for name, kind in kinds if not refused[name]]
    if not fitting:
        raise UsageError(f"{folder / CONFIG}: {next(iter(refused.values()))}", supported())
    return fitting[0]


def readers(word: Any) -> Iterator[tuple[str, PeftType]]:
    """Methods that declare PEFT's type `word`, with how they read it."""
    for name, card in registry.methods().items():
        if word and card.facts.get("peft_type") == word:
            kind = card.load().in_peft()
            if kind is not None:
                yield name, kind


def supported() -> str:
    words = {card.facts["peft_type"] for card in registry.methods().values() if card.facts.get("peft_type")}
    return f"Folders of PEFT can be read of the types {', '.join(sorted({*words, *ALONE}))}."


def refuse_unbuildable(saved: SavedAdapter) -> None:
    """Raises CheckFailed naming the tensor that does not fit."""
    try:
        for site in saved.sites:
            saved.build(site)
    except (ValueError, RuntimeError) as error:
        raise CheckFailed(f"{saved.folder / PEFT_TENSORS}: {error}") from None


def placed(saved: SavedAdapter, model: nn.Module, stored: Stored | None = None) -> SavedAdapter:
    """The adapter with its sites as `model` has them, and in its order. lrft's own say it themselves.

    stored: the weight (d, k) of a site in the base's files, for a model that is without weights.

    The configuration's `fan_in_fan_out` is not asked: PEFT keeps one word for all layers, that of the last.
    Raises CheckFailed where the tensors do not fit the sides that the model says, UsageError where PEFT's adapter is no
    change of a weight alone.
    """
    if "format" in saved.info:
        return saved
    layers: dict[str, Any] = dict(linear.named_linears(model))
    layers |= {name: module.base for name, module in model.named_modules() if isinstance(module, AdapterLinear)}
    refuse_biased(saved, layers)
    kind = dict(readers(saved.info["peft_type"])).get(saved.info["methods"][0]["name"])
    if kind is not None and kind.by_targets and not saved.sites:
        saved = by_targets(saved, kind, layers)
    sites = [as_in(site, layers[site.name]) if site.name in layers else site for site in saved.sites]
    # What all layers have in common may be as large as the largest of them, so all sides come before any is built.
    sites = in_order([as_in_stack(site, model) for site in sites], layers)
    whole = replace(saved, sites=sites)
    if not all(site.d and site.k for site in sites):
        return whole
    if kind is not None and SHARED in saved.tensors:
        shared = kind.read_shared(saved.tensors[SHARED], sites)
        whole = replace(whole, tensors={**saved.tensors, SHARED: shared})
    if kind is not None and not kind.whole:
        whole = completed(whole, kind, layers, stored)
    if kind is None or not is_whole(saved, kind):
        refuse_unbuildable(whole)
    return whole


def is_whole(saved: SavedAdapter, kind: PeftType) -> bool:
    """Whether the file alone has said everything that an adapter is made of."""
    return kind.whole and all(site.d and site.k for site in saved.sites)


def by_targets(saved: SavedAdapter, kind: PeftType, layers: Mapping[str, Any]) -> SavedAdapter:
    """With the layers that the configuration chooses. Raises CheckFailed where it chooses none."""
    config = saved.info["config"]
    try:
        names = targeted(config, list(layers))
    except re.error as error:
        raise CheckFailed(f"{saved.folder / CONFIG}: {error}") from None
    if not names:
        raise CheckFailed(f"{saved.folder / CONFIG}: target_modules chooses no linear layer of this model")
    sites = [kind.site(name, {}, config, depth_of(name)) for name in names]
    return replace(saved, sites=sites, tensors={**saved.tensors, **{name: {} for name in names}})


def completed(saved: SavedAdapter, kind: PeftType, layers: Mapping[str, Any], stored: Stored | None) -> SavedAdapter:
    """With what its file leaves out. Raises CheckFailed where that does not fit."""
    own = {site.name: saved.tensors[site.name] for site in saved.sites}
    if lacking := [name for name in own if name not in layers]:
        raise CheckFailed(f"{saved.folder}: this model has no linear layer {lacking[0]}")
    try:
        made = kind.completed(
            saved.composition.method,
            own,
            saved.tensors.get(SHARED, {}),
            saved.sites,
            lambda site: weight_of(site, layers[site.name], stored),
        )
    except (ValueError, RuntimeError) as error:  # the latter: sides that do not go together
        raise CheckFailed(f"{saved.folder}: {error}") from None
    return replace(saved, tensors={**saved.tensors, **made})


def in_order(sites: list[Site], layers: Mapping[str, Any]) -> list[Site]:
    """As the model has them: a file is sorted by names, in which layer 10 comes before layer 2."""
    places = {name: place for place, name in enumerate(layers)}
    return sorted(sites, key=lambda site: places.get(site.name, len(places)))


def refuse_biased(saved: SavedAdapter, layers: Mapping[str, Any]) -> None:
    scaling = any(kind.scales_bias for _, kind in readers(saved.info["peft_type"]))
    biased = [site.name for site in saved.sites if site.name in layers and layers[site.name].bias is not None]
    if scaling and biased:
        raise UsageError(
            f"{saved.folder}: PEFT's {saved.info['peft_type']} changes the bias of {biased[0]} as well, which is no "
            f"change of a weight"
        )


def as_in_stack(site: Site, model: nn.Module) -> Site:
    """The site of an expert as the model's stack stores it."""
    place = stack_of(site.name)
    return site if place is None else replace(site, transposed=is_stored_transposed(model, place[0]))


def as_in(site: Site, layer: nn.Module) -> Site:
    d, k = linear.shape(layer)
    return replace(site, d=site.d or d, k=site.k or k, transposed=linear.stored_transposed(layer))


def sorted_out(flat: Mapping[str, Tensor], kind: PeftType) -> Found:
    layers: dict[str, dict[str, Tensor]] = {}
    shared, left_out = {}, []
    for key, tensor in flat.items():
        own = kind.common(key.removeprefix(SHARED_PREFIX)) if key.startswith(SHARED_PREFIX) else ""
        layer, word = within(key, kind)
        if own:
            shared[own] = tensor
        elif word and tensor.ndim == len(kind.tensors[word].sides):
            layers.setdefault(layer, {})[word] = tensor
        elif not key.endswith(kind.repeated):
            left_out.append(key)
    return Found(layers, shared, left_out)


def within(key: str, kind: PeftType) -> tuple[str, str]:
    """(layer, our name of its tensor); empty words for a tensor of no layer."""
    if key.startswith(PEFT_PREFIX):
        for word, said in kind.tensors.items():
            if key.endswith(f".{said.ending}"):
                return key[len(PEFT_PREFIX) : -len(said.ending) - 1], word
    return "", ""
