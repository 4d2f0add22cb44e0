"""Adapter folders on disk.

    adapter_config.json, adapter_model.safetensors    PEFT's layout, when stock PEFT can represent the method exactly
                                                      and finds the layers by their names (`peft_export`)
    lrft.json                                         what lrft needs beside it: methods, sites, base, checksums
    lrft.safetensors                                  the adapter's own tensors, only when PEFT's are not the same ones
    tokenizer files, chat template                    those that trained
    generation_config.json                            the base's, and the end tokens that were trained

Reading is strict: a missing, extra, misshapen, not finite or altered tensor is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters import compose
from lrft.adapters.adapter import Adapter, Site, load_tensors
from lrft.adapters.attach import attach_sites, build_shared, build_site, refuse_adapted
from lrft.adapters.attached import SHARED, Attached
from lrft.adapters.beside import NamesBeside
from lrft.adapters.modules_to_save import tensors_of
from lrft.adapters.peft_export import PEFT_TENSORS, from_peft_names, peft_config, peft_folder, peft_tensors
from lrft.adapters.peft_names import peft_names
from lrft.errors import CheckFailed, LrftError, MissingError, UsageError
from lrft.model import linear
from lrft.model.added_tokens import Added
from lrft.model.end_tokens import add_stops, saved_stops
from lrft.model.experts import unstack_for
from lrft.model.head import Head, head_modules
from lrft.model.quantized import KINDS
from lrft.model.taken_over import take_over
from lrft.utils import files

FORMAT = 1
OWN_TENSORS = "lrft.safetensors"


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter folder, read and checked.

    tensors   name of a site or of a module that was trained in full, or `SHARED` -> tensor name -> tensor
    """

    folder: Path
    info: dict[str, Any]
    sites: list[Site]
    composition: compose.Composition
    tensors: dict[str, dict[str, Tensor]]

    @property
    def quantization(self) -> str:
        """How the base was quantised that it was trained on: none, nf4, fp4, int8 or fp8."""
        return str(self.info["base"].get("quantization", "none"))

    @property
    def head(self) -> Head | None:
        """The head that it was trained with; None for a language model."""
        return Head.from_dict(self.info["base"].get("head"))

    @property
    def added(self) -> Added | None:
        """The tokens that its base got for the training."""
        return Added.from_dict(self.info["base"].get("added_tokens"))

    @property
    def beside(self) -> NamesBeside:
        """What was trained beside the adapters."""
        return NamesBeside.from_json(self.info)

    def build(self, site: Site) -> Adapter:
        """One site's adapter with its saved values, without a model."""
        adapter = build_site(site, self.composition, None, fresh=False, shared=self.shared)
        adapter.load(self.tensors[site.name])
        return adapter.eval()

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors, as `Attached.state_dict` names them."""
        return {f"{site}.{name}": t for site, named in self.tensors.items() for name, t in named.items()}

    @cached_property
    def shared(self) -> nn.Module | None:
        """What all adapters have in common, with its saved values."""
        shared = build_shared(self.sites, self.composition, seed=self.info["seed"])
        if shared is not None:
            load_tensors(SHARED, dict(shared.named_parameters()), self.tensors.get(SHARED, {}))
        return shared


def save_adapter(
    attached: Attached,
    folder: Path,
    *,
    base: Mapping[str, Any],
    seed: int = 0,
    extra: Mapping[str, Any] | None = None,
    beside: Iterable[str] = (),
) -> None:
    """Write the adapter's files into the existing `folder`. `base` holds name, revision and fingerprint.

    beside   names of existing files that belong to the adapter (its tokenizer), for the checksum manifest
    """
    written: list[str] = []
    listed = list(beside)
    stock = peft_folder(attached, base)
    if not stock.refused:
        files.write_tensors(folder / PEFT_TENSORS, stock.tensors)
        files.write_json(folder / "adapter_config.json", stock.config)
        written.append(PEFT_TENSORS)
        listed.append("adapter_config.json")
    if not stock.as_is:
        files.write_tensors(folder / OWN_TENSORS, attached.state_dict())
        written.append(OWN_TENSORS)
    save_members(attached, folder, base)
    info = {
        "format": FORMAT,
        "methods": list(attached.methods),
        "tensors": PEFT_TENSORS if stock.as_is else OWN_TENSORS,
        "base": dict(base),
        "seed": seed,
        "sites": [_site_to_json(site) for site in attached.sites],
        **attached.beside.names.to_json(),
        "sha256": {name: files.sha256(folder / name) for name in sorted([*written, *listed])},
        **(extra or {}),
    }
    files.write_json(folder / "lrft.json", info | {"checksum": _checksum(info)})
    _read_back(folder, written)


def save_members(attached: Attached, folder: Path, base: Mapping[str, Any]) -> None:
    """Each member of an ensemble in a folder of its own, as stock PEFT reads it: member-1, member-2, ..."""
    forms = {name: adapter.members() for name, adapter in attached.modules.items()}
    for number in range(min(len(found) for found in forms.values())):
        mine = {name: found[number] for name, found in forms.items()}
        names = peft_names(attached, mine, base.get("quantization", "none"))
        if names.refused:
            return
        member = folder / f"member-{number + 1}"
        member.mkdir(exist_ok=True)
        files.write_tensors(member / PEFT_TENSORS, peft_tensors(mine, attached, base))
        files.write_json(member / "adapter_config.json", peft_config(attached, mine, base, names))


def read_adapter(folder: str | Path) -> SavedAdapter:
    """Read and check an adapter folder.

    Raises UsageError when it is none, CheckFailed when it is damaged, MissingError when its method is not installed.
    """
    folder = Path(folder)
    if not (folder / "lrft.json").is_file():
        raise UsageError(f"{folder} is not an adapter folder of lrft (no lrft.json)")
    info = files.read_json(folder / "lrft.json")
    if not isinstance(info, dict) or "format" not in info:
        raise CheckFailed(f"{folder / 'lrft.json'} does not describe an adapter")
    if not isinstance(info["format"], int) or info["format"] > FORMAT:
        raise LrftError(f"{folder} was written by a newer lrft (format {info['format']}, this one reads {FORMAT})")
    # A rank or a factor that is not the one that was trained would load without a complaint.
    if info.pop("checksum", None) != _checksum(info):
        raise CheckFailed(f"{folder / 'lrft.json'} is not the file that was saved (its checksum differs)")
    try:
        _check_files(folder, info)
        missing = compose.missing_method(info["methods"])
        if missing is not None:
            raise MissingError(f"{folder} cannot be read without {missing}", "Install that package, or a newer lrft.")
        sites = [_site_from_json(site) for site in info["sites"]]
        composition = compose.compose((entry["name"], entry["options"]) for entry in info["methods"])
        str(info["base"]["name"]), int(info["seed"])
        beside = NamesBeside.from_json(info)
        Head.from_dict(info["base"].get("head"))
        Added.from_dict(info["base"].get("added_tokens"))
        if info["base"].get("quantization", "none") not in ("none", *KINDS):
            raise ValueError("unknown kind of quantisation")
    except (KeyError, TypeError, AttributeError, ValueError):
        raise CheckFailed(f"{folder / 'lrft.json'} does not describe an adapter") from None
    flat = files.read_tensors(folder / info["tensors"])
    if info["tensors"] == PEFT_TENSORS:
        flat = from_peft_names(flat, beside, {site.name for site in sites})
    places = [*(site.name for site in sites), *beside.places]
    tensors = _by_site(flat, places, folder / info["tensors"])
    saved = SavedAdapter(folder, info, sites, composition, tensors)
    try:
        if saved.shared is None and SHARED in tensors:
            raise ValueError(f"{SHARED}: not expected")
        for site in sites:
            saved.build(site)
    except (ValueError, TypeError, RuntimeError) as error:  # the last two: sizes that no tensor can have
        raise CheckFailed(f"{folder / info['tensors']}: {error}") from None
    return saved


def load_adapter(model: nn.Module, folder: str | Path) -> Attached:
    """Attach a saved adapter to `model`, in place; its generation stops at the end tokens that were trained.

    Raises CheckFailed when it does not fit.
    """
    return load_saved(model, read_adapter(folder))


def load_saved(model: nn.Module, saved: SavedAdapter) -> Attached:
    """Attach an adapter that was read to `model`, in place. Raises CheckFailed when it does not fit."""
    refuse_adapted(model)
    take_over(model)
    folder = saved.folder
    unstack_for(model, [site.name for site in saved.sites])
    modules = dict(linear.named_linears(model))
    for site in saved.sites:
        if site.name not in modules:
            raise CheckFailed(f"{folder}: this model has no linear layer {site.name}")
        if linear.shape(modules[site.name]) != (site.d, site.k):
            d, k = linear.shape(modules[site.name])
            raise CheckFailed(f"{folder}: {site.name} is {d} x {k} in this model, {site.d} x {site.k} in the adapter")
    refuse_other_modules(model, saved)
    attached = attach_sites(
        model, saved.sites, saved.composition, seed=saved.info["seed"], fresh=False, names=saved.beside
    )
    _refuse_other_shapes(attached, saved)
    attached.load_state_dict(saved.state_dict())
    add_stops(model, saved_stops(saved.folder))
    return attached


def rename_base(folder: Path, name: str) -> None:
    """Give the base of the adapter in `folder` another name, in every file that has it. Where it lies on one machine is
    no business of another."""
    config, own = folder / "adapter_config.json", folder / "lrft.json"
    if config.is_file():
        files.write_json(config, files.read_json(config) | {"base_model_name_or_path": name})
    if own.is_file():
        info = files.read_json(own)
        del info["checksum"]
        info["base"]["name"] = name
        if config.name in info["sha256"]:
            info["sha256"][config.name] = files.sha256(config)
        files.write_json(own, info | {"checksum": _checksum(info)})


def refuse_other_modules(model: nn.Module, saved: SavedAdapter) -> None:
    """Raises CheckFailed unless the model has the modules that were trained beside the adapters, and no other head."""
    names = saved.beside
    modules = dict(model.named_modules())
    head = head_modules(model)
    if any(name not in modules for name in names.full) or not set(head) <= set(names.full):
        raise CheckFailed(
            f"{saved.folder}: this model's head ({', '.join(sorted(head)) or 'none'}) is not the one that was saved "
            f"with the adapter ({', '.join(names.full) or 'none'})"
        )
    for name, ids in names.rows.items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None or weight.ndim != 2 or max(ids) >= len(weight):
            held = "no such module" if weight is None else f"{len(weight):,} rows"
            raise CheckFailed(f"{saved.folder} trains row {max(ids):,} of {name}, and this model has {held}")
    for name in names.biases:
        if getattr(modules.get(name), "bias", None) is None:
            raise CheckFailed(f"{saved.folder} trains the bias of {name}, and this model has none")


def _refuse_other_shapes(attached: Attached, saved: SavedAdapter) -> None:
    """Raises CheckFailed unless what was trained beside the adapters has the saved shapes."""
    own = {name: p.shape for name, p in tensors_of(attached.beside.by_place).items()}
    given = {f"{m}.{name}": t.shape for m in saved.beside.places for name, t in saved.tensors[m].items()}
    if own == given:
        return
    if saved.head is None and saved.beside.full:
        odd = next(name for name in (*own, *given) if own.get(name) != given.get(name))
        mine, its = (tuple(found[odd]) if odd in found else "none" for found in (own, given))
        raise CheckFailed(f"{saved.folder}: {odd} is {mine} in this model, {its} in the adapter")
    found = ", ".join(sorted(attached.modules_to_save)) or "none"
    raise CheckFailed(
        f"{saved.folder}: this model's head ({found}) is not the one that was saved with the adapter "
        f"({', '.join(saved.beside.full) or 'none'})"
    )


def _checksum(info: Mapping[str, Any]) -> str:
    """sha256 of what lrft.json says, whatever its spacing and order."""
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _check_files(folder: Path, info: Mapping[str, Any]) -> None:
    """Raises CheckFailed for a file that is missing or altered, or for a name that leads out of the folder."""
    if info["tensors"] not in (PEFT_TENSORS, OWN_TENSORS) or info["tensors"] not in info["sha256"]:
        raise CheckFailed(f"{folder / 'lrft.json'} does not name a tensor file")
    for name, expected in info["sha256"].items():
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name:
            raise CheckFailed(f"{folder / 'lrft.json'} lists {name!r}, which is not a file in its folder")
        if not (folder / name).is_file():
            raise CheckFailed(f"{folder / name} is missing")
        if files.sha256(folder / name) != expected:
            raise CheckFailed(f"{folder / name} is not the file that was saved (its checksum differs)")


def _by_site(flat: Mapping[str, Tensor], places: Iterable[str], path: Path) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {name: {} for name in places}
    if any(key.startswith(f"{SHARED}.") for key in flat):
        found[SHARED] = {}
    # A site's name can be the beginning of another's: the longest one that fits is meant.
    for key, tensor in flat.items():
        site = max((name for name in found if key.startswith(f"{name}.")), key=len, default=None)
        if site is None:
            raise CheckFailed(f"{path}: tensor {key} does not belong to any adapted layer")
        found[site][key[len(site) + 1 :]] = tensor
    return found


def _read_back(folder: Path, names: Iterable[str]) -> None:
    """A file of adapter tensors is only saved when its header says so: names, shapes, nothing of size zero."""
    from safetensors import safe_open

    for name in names:
        with safe_open(folder / name, framework="pt") as file:
            keys = list(file.keys())
            empty = [key for key in keys if 0 in file.get_slice(key).get_shape()]
        if not keys or empty:
            raise CheckFailed(f"{folder / name}: written with empty tensors ({', '.join(empty[:3]) or 'no tensors'})")


def _site_to_json(site: Site) -> dict[str, Any]:
    return {
        "name": site.name,
        "d": site.d,
        "k": site.k,
        "rank": site.rank,
        "scale": site.scale,
        "depth": site.depth,
        "dropout": site.dropout,
        "transposed": site.transposed,
        "dtype": str(site.dtype).removeprefix("torch."),
    }


def _site_from_json(value: Mapping[str, Any]) -> Site:
    return Site(**{**value, "dtype": {"float32": torch.float32, "float64": torch.float64}[value["dtype"]]})
