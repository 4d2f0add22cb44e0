"""Export to PEFT's format: tensors, configuration and target module names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from lrft.adapters.adapter import Adapter, PeftForm
from lrft.adapters.attached import Attached
from lrft.adapters.beside import NamesBeside
from lrft.adapters.peft_beside import beside_config, beside_tensors, peft_keys
from lrft.adapters.peft_experts import expert_tensors, stacks_in
from lrft.adapters.peft_names import Names
from lrft.model.added_tokens import Added
from lrft.model.experts import stack_of
from lrft.model.head import task_of

PEFT_TENSORS = "adapter_model.safetensors"
# An adapter whose tensors are just these is the same thing in PEFT's file, under PEFT's names.
PEFT_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
PEFT_PREFIX = "base_model.model."
NOTHING = NamesBeside()


def is_its_form(adapter: Adapter, form: PeftForm) -> bool:
    """Whether the adapter saves just the tensors of PEFT's file. (A factor that is a buffer is in that file only.)"""
    written = {"A": form.A, "B": form.B, "magnitude": form.magnitude}
    own = adapter.tensors()
    same = all(written.get(name) is tensor for name, tensor in own.items())
    return same and own.keys() == {name for name, tensor in written.items() if tensor is not None}


def peft_tensors(forms: Mapping[str, PeftForm], attached: Attached, base: Mapping[str, Any]) -> dict[str, Tensor]:
    """PEFT's state dict: lora_A (r, k) and lora_B (d, r) for each site, and what was trained beside them."""
    tensors = beside_tensors(attached, Added.from_dict(base.get("added_tokens")))
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
        "peft_type": "LORA",
        "task_type": task_of(attached.model),
        "base_model_name_or_path": base.get("name"),
        "revision": base.get("revision"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "target_modules": list(names.modules),
        "target_parameters": list(names.parameters) or None,
        "lora_dropout": 0.0 if names.parameters else attached.sites[0].dropout,
        "fan_in_fan_out": any(site.transposed and stack_of(site.name) is None for site in attached.sites),
        "use_rslora": False,
        "use_dora": any(form.magnitude is not None for form in forms.values()),
        "init_lora_weights": True,
        **beside_config(attached, Added.from_dict(base.get("added_tokens"))),
    }


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
