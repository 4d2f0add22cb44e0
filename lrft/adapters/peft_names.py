"""Target module names under which PEFT finds the adapted layers, or the reason why it cannot.

PEFT does not take `target_modules` as it stands. Where transformers stacks a model's experts at loading, it takes every
name that ends like a projection of those experts (gate_proj, up_proj, down_proj) for the stacked tensors, and shared
experts and dense layers of the same names get no adapter, without a message
(peft/utils/transformers_weight_conversion.py). Those layers are named in `target_parameters` instead, by their weight,
which PEFT takes as it stands. Models with Mamba's blocks it refuses by type (peft/tuners/tuners_utils.py).

PEFT is not asked: it need not be installed. What decides is transformers' own mapping, which PEFT asks too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrft.adapters.adapter import PeftForm
from lrft.adapters.attached import Attached
from lrft.adapters.peft_experts import refused, stacks_in
from lrft.model.experts import stack_of

# Entries of transformers' mapping whose experts' names PEFT translates; many models share their rules.
TRANSLATED = ("mixtral", "qwen2_moe")
ROUTER = "gate"
# Types of models, and last words of layers in them, that PEFT refuses.
MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
REFUSED_IN_MAMBA = ("conv1d", "out_proj")


@dataclass(frozen=True)
class Names:
    """`modules` and `parameters` are PEFT's target_modules and target_parameters; `refused` says why there are none."""

    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    refused: str = ""


def peft_names(attached: Attached, forms: Mapping[str, PeftForm | None], quantization: str = "none") -> Names:
    """Names by which stock PEFT adapts exactly the layers of `forms`. A form is None where it is no LoRA.

    quantization: of the base, "none" without."""
    stacks = stacks_in(forms)
    if stacks and (reason := no_experts(attached.model, forms, quantization)):
        return Names(refused=f"PEFT cannot adapt {next(iter(stacks))}: {reason}")
    names = [name for name in forms if stack_of(name) is None]
    kind = model_type(attached.model)
    words = sorted({last(name) for name in names} & set(REFUSED_IN_MAMBA))
    if kind in MAMBA and words:
        return Names(refused=f"PEFT refuses {words[0]} in models of type {kind}")
    for name, taken_for in translations(attached.model, names).items():
        if name != taken_for:
            return Names(refused=f"PEFT would load {name} into {taken_for}")
    experts = words_of_experts(kind)
    by_weight = {name for name in names if last(name) in experts}
    if reason := no_parameters(attached, forms, quantization) if by_weight else "":
        return Names(refused=f"PEFT treats {sorted(by_weight)[0]} as part of the stacked experts, and {reason}")
    modules = target_modules(attached, set(names) - by_weight)
    if unclear := ambiguous(attached, [*modules, *by_weight], names):
        return Names(refused=f"PEFT would match {unclear} to more than one layer")
    return Names(tuple(modules), (*sorted(f"{name}.weight" for name in by_weight), *stacks))


def no_experts(model: Any, forms: Mapping[str, PeftForm | None], quantization: str) -> str:
    """Why PEFT cannot adapt stacks of experts; "" when it can."""
    if quantization != "none":
        return "its target_parameters do not support quantised weights"
    loras = {name: form for name, form in forms.items() if form is not None}
    return refused(model, loras) if len(loras) == len(forms) else "only its LoRA has target_parameters"


def no_parameters(attached: Attached, forms: Mapping[str, PeftForm | None], quantization: str) -> str:
    """Why PEFT cannot adapt a layer by its weight's name; "" when it can."""
    if any(form is None for form in forms.values()):
        return "only its LoRA has target_parameters"
    if any(form is not None and form.magnitude is not None for form in forms.values()):
        return "its target_parameters do not support DoRA"
    if any(site.transposed for site in attached.sites):
        return "its target_parameters do not support transposed weights"
    if quantization != "none":
        return "its target_parameters do not support quantised weights"
    return ""


def target_modules(attached: Attached, names: set[str]) -> list[str]:
    """The last words of `names` where they mean exactly these modules, else the whole names."""
    words = {last(name) for name in names}
    return sorted(names if any(last(other) in words for other in modules_besides(attached, names)) else words)


def ambiguous(attached: Attached, targets: list[str], names: list[str]) -> str:
    """The first whole name that another module's name ends with; "" when there is none."""
    whole = tuple(f".{target}" for target in targets if target in names)
    others = modules_besides(attached, set(names)) if whole else []
    return next((ending[1:] for other in others for ending in whole if other.endswith(ending)), "")


def modules_besides(attached: Attached, names: set[str]) -> list[str]:
    """Names of the model's modules without those of `names`; what lies inside an adapted layer is none of the base."""
    inside = tuple(f"{name}." for name in attached.modules)
    return [
        name for name, _ in attached.model.named_modules() if name and name not in names and not name.startswith(inside)
    ]


def last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def model_type(model: Any) -> str | None:
    """transformers' word for the architecture; None for other models."""
    return getattr(getattr(model, "config", None), "model_type", None)


def words_of_experts(kind: str | None) -> set[str]:
    """Last words of names that PEFT takes for stacked experts, or their router, in models of type `kind`."""
    here = stacked_patterns(kind)
    for entry in TRANSLATED:
        patterns = stacked_patterns(entry)
        if patterns and patterns <= here:
            return {last(pattern.removesuffix(".weight")) for pattern in patterns} | {ROUTER}
    return set()


def stacked_patterns(kind: str | None) -> set[str]:
    """Names in checkpoints of what transformers stacks into one tensor, for models of type `kind`."""
    if kind is None:
        return set()
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import MergeModulelist, WeightConverter

    rules = get_checkpoint_conversion_mapping(kind) or []
    stacking = (
        rule
        for rule in rules
        if isinstance(rule, WeightConverter) and any(isinstance(step, MergeModulelist) for step in rule.operations)
    )
    return {pattern for rule in stacking for pattern in rule.source_patterns}


def translations(model: Any, names: list[str]) -> dict[str, str]:
    """Layer -> the one that PEFT puts its tensors into: it renames them as transformers would those of a checkpoint."""
    kind = model_type(model)
    if kind is None:
        return {}
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings

    if get_checkpoint_conversion_mapping(kind) is None:
        return {}
    rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    ending = ".lora_A.weight"
    return {name: apply_renamings(f"{name}{ending}", rules).removesuffix(ending) for name in names}
