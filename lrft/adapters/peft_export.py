"""Export to PEFT's format: tensors, configuration and target module names.

As a LoRA where PEFT's LoRA computes the same, which most tools load; else as PEFT's own type of the method.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lrft.adapters import compose
from lrft.adapters.adapter import Adapter, PeftForm
from lrft.adapters.attached import Attached
from lrft.adapters.base_weights import Stored, weight_of
from lrft.adapters.beside import NamesBeside
from lrft.adapters.peft_beside import beside_config, beside_tensors, is_as_it_is, peft_keys
from lrft.adapters.peft_experts import expert_tensors, stacks_in
from lrft.adapters.peft_names import Names, peft_names
from lrft.model.added_tokens import Added
from lrft.model.experts import stack_of
from lrft.model.head import task_of

PEFT_TENSORS = "adapter_model.safetensors"
# An adapter whose tensors are just these is the same thing in PEFT's file, under PEFT's names.
PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
PEFT_PREFIX = "base_model.model."
NOTHING = NamesBeside()
SHARED_PREFIX = "base_model."
NO_TYPE = "stock PEFT cannot represent this method"


@dataclass(frozen=True)
class PeftFolder:
    """The two files of stock PEFT's folder, or the reason why there are none.

    kind      the type that PEFT calls it: LORA, HRA, ...
    as_is     the file holds just the tensors that the adapter saves, under PEFT's names
    """

    kind: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    as_is: bool = False
    refused: str = ""


def peft_folder(attached: Attached, base: Mapping[str, Any], *, own_type: bool = False) -> PeftFolder:
    """How stock PEFT gets an adapter. base: name, revision and quantization of the base.

    own_type   as PEFT's own type of the method even where a LoRA of PEFT computes the same
    """
    if own_type:
        return as_own_type(attached, base)
    found = as_lora(attached, base)
    return as_own_type(attached, base) if found.refused == NO_TYPE else found


def as_lora(attached: Attached, base: Mapping[str, Any]) -> PeftFolder:
    forms = {name: form for name, adapter in attached.modules.items() if (form := adapter.peft()) is not None}
    if len(forms) < len(attached.modules):
        return PeftFolder(refused=NO_TYPE)
    names = peft_names(attached, forms, base.get("quantization", "none"))
    if names.refused:
        return PeftFolder(refused=names.refused)
    own = attached.shared is None and is_as_it_is(attached, added_in(base))
    as_is = own and all(is_its_form(adapter, forms[name]) for name, adapter in attached.modules.items())
    return PeftFolder("LORA", peft_config(attached, forms, base, names), peft_tensors(forms, attached, base), as_is)


def as_own_type(attached: Attached, base: Mapping[str, Any], stored: Stored | None = None) -> PeftFolder:
    """As the type that the method says, with the tensors under PEFT's names. stored: for a model without weights."""
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    kind = composition.method.in_peft()
    if kind is None:
        return PeftFolder(refused=NO_TYPE)
    if unfit := [name for name, adapter in attached.modules.items() if not kind.fits(adapter)]:
        return PeftFolder(refused=f"stock PEFT's {kind.name} cannot represent the adapter of {unfit[0]}")
    if more := beyond_modules(attached, added_in(base), kind.beside):
        return PeftFolder(refused=f"stock PEFT's {kind.name} has no place for {more}")
    names = peft_names(attached, dict.fromkeys(attached.modules), base.get("quantization", "none"))
    if names.refused:
        return PeftFolder(refused=names.refused)
    if kind.scales_bias and (biased := [n for n in attached.modules if bias_of(attached.model, n) is not None]):
        return PeftFolder(refused=f"stock PEFT's {kind.name} changes the bias of {biased[0]} as well")
    try:
        said = kind.config(composition.method, attached.modules, names.modules)
        other = kind.unfit(
            attached.modules, lambda site: weight_of(site, attached.model.get_submodule(site.name), stored)
        )
    except ValueError as error:
        return PeftFolder(refused=str(error))
    if other:
        return PeftFolder(refused=f"stock PEFT's {kind.name} would be another function: {other}")
    added = added_in(base) if kind.beside else None
    tensors = beside_tensors(attached, added)
    for name, adapter in attached.modules.items():
        tensors |= {f"{PEFT_PREFIX}{name}.{ending}": tensor for ending, tensor in kind.written(adapter).items()}
    if attached.shared is not None:
        shared = kind.shared_of(attached.shared, attached.sites)
        tensors |= {f"{SHARED_PREFIX}{ending}": tensor for ending, tensor in shared.items()}
    config = common_config(attached, kind.name, base, names) | said
    if kind.beside:
        config |= beside_config(attached, added)
    return PeftFolder(kind.name, config, tensors)


def beyond_modules(attached: Attached, added: Added | None, has_beside: bool) -> str:
    """What is trained that a type of PEFT has no place for; "" for nothing. has_beside: as `PeftType.beside`."""
    if any(map(stack_of, attached.modules)):
        return "stacked experts"
    if has_beside:
        return ""
    if attached.beside.rows or added is not None:
        return "rows of tokens"
    return "biases" if attached.beside.biases else ""


def bias_of(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name).bias


def added_in(base: Mapping[str, Any]) -> Added | None:
    """The new tokens of a base."""
    return Added.from_dict(base.get("added_tokens"))


def common_config(attached: Attached, kind: str, base: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Keys that all types of PEFT have."""
    return {
        "peft_type": kind,
        "task_type": task_of(attached.model),
        "base_model_name_or_path": base.get("name"),
        "revision": base.get("revision"),
        "inference_mode": True,
        "target_modules": list(names.modules),
        "modules_to_save": list(attached.modules_to_save) or None,
    }


def is_its_form(adapter: Adapter, form: PeftForm) -> bool:
    """Whether the adapter saves just the tensors of PEFT's file. (A factor that is a buffer is in that file only.)"""
    written = {"A": form.A, "B": form.B, "magnitude": form.magnitude}
    own = adapter.tensors()
    same = all(written.get(name) is tensor for name, tensor in own.items())
    return same and own.keys() == {name for name, tensor in written.items() if tensor is not None}


def peft_tensors(forms: Mapping[str, PeftForm], attached: Attached, base: Mapping[str, Any]) -> dict[str, Tensor]:
    """PEFT's state dict: lora_A (r, k) and lora_B (d, r) for each site, and what was trained beside them."""
    tensors = beside_tensors(attached, added_in(base))
    experts = expert_tensors(attached.model, forms)
    tensors |= {f"{PEFT_PREFIX}{name}": tensor for name, tensor in experts.items()}
    for name, form in forms.items():
        if stack_of(name) is not None:
            continue
        tensors[f"{PEFT_PREFIX}{name}.{PEFT_NAMES['A']}"] = form.A
        tensors[f"{PEFT_PREFIX}{name}.{PEFT_NAMES['B']}"] = form.B
        if form.magnitude is not None:
            tensors[f"{PEFT_PREFIX}{name}.{PEFT_NAMES['magnitude']}"] = form.magnitude
    return tensors


def peft_config(
    attached: Attached, forms: Mapping[str, PeftForm], base: Mapping[str, Any], names: Names
) -> dict[str, Any]:
    """PEFT's LoraConfig. The factor is folded into alpha, so that a reader that ignores use_rslora is right as well.

    A layer that is named by its weight has its rank and alpha under that name, and no dropout: PEFT has none there.
    """
    said = {name: f"{name}.weight" if f"{name}.weight" in names.parameters else name for name in forms}
    said |= {name: stack for stack, layers in stacks_in(forms).items() for name in layers}
    ranks = {said[name]: form.A.shape[0] for name, form in forms.items()}
    alphas = {said[name]: form.scale * form.A.shape[0] for name, form in forms.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        **common_config(attached, "LORA", base, names),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "target_parameters": list(names.parameters) or None,
        "lora_dropout": 0.0 if names.parameters else attached.sites[0].dropout,
        "fan_in_fan_out": any(site.transposed and stack_of(site.name) is None for site in attached.sites),
        "use_rslora": False,
        "use_dora": any(form.magnitude is not None for form in forms.values()),
        "init_lora_weights": True,
        **beside_config(attached, added_in(base)),
    }


def written_rank(name: str, config: Mapping[str, Any]) -> int:
    """The rank that a configuration written here has for the layer `name`."""
    stack = name.rpartition(".")[0] if stack_of(name) is not None else name
    patterns = config["rank_pattern"]
    return int(next((patterns[key] for key in (name, f"{name}.weight", stack) if key in patterns), config["r"]))


def from_peft_names(
    flat: Mapping[str, Tensor], names: NamesBeside = NOTHING, sites: Collection[str] = ()
) -> dict[str, Tensor]:
    """PEFT's tensors under lrft's names. names: what was trained beside the layers `sites`."""
    own = {}
    full = tuple(f"{PEFT_PREFIX}{name}." for name in names.full)
    beside = peft_keys(names, sites)
    for key, tensor in flat.items():
        if key in beside:
            own[beside[key]] = tensor
            continue
        if full and key.startswith(full):
            key = key.removeprefix(PEFT_PREFIX)
        for word, peft_name in PEFT_NAMES.items():
            if key.startswith(PEFT_PREFIX) and key.endswith(f".{peft_name}"):
                key = key[len(PEFT_PREFIX) : -len(peft_name)] + word
                break
        own[key] = tensor
    return own
