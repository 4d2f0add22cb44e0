"""The table of PEFT's types in docs/adapters.md: what is here, which folders are read and written, and what is not."""

from __future__ import annotations

from lrft import registry
from lrft.adapters.peft_alone import NORMS, TOKENS
from lrft.registry import MethodCard

PROMPT = "a prompt method"
ABSENT = "no such method"
# Types of PEFT 0.21 without a method here, and why.
NOT_HERE = {
    "ADAMSS": ABSENT,
    "ADAPTION_PROMPT": PROMPT,
    "BEFT": "adds vectors to outputs, of layers without a bias as well; those that a model has are `adapter.biases`",
    "CARTRIDGE": PROMPT,
    "CPT": PROMPT,
    "LILY": "its routing is a mean over all rows of a batch, so that a row's answer depends on the others",
    "MULTITASK_PROMPT_TUNING": PROMPT,
    "POLY": "routes by the id of a task, which rows do not have here",
    "PREFIX_TUNING": PROMPT,
    "PROMPT_TUNING": PROMPT,
    "P_TUNING": PROMPT,
    "SHADOW": "a second, smaller model beside the base, not a change of its layers",
    "XLORA": "mixes several LoRAs that were trained before, by a classifier over the whole model; `lrft combine` makes "
    "one of them",
}
# What is trained beside a method here, and alone there.
BESIDE = {NORMS: "`adapter.norms`, beside a method", TOKENS: "`adapter.train_tokens`, beside a method"}
# Settings of PEFT's LoRA that change what it computes.
LORA_SETTINGS = (
    ("`use_rslora`, `rank_pattern`, `alpha_pattern`", "read", "the factor is folded into `lora_alpha`"),
    ("`use_dora`", "read", "written"),
    ("`target_parameters` (weights of linear layers, stacked experts)", "read", "written where PEFT needs it"),
    ("`layers_to_transform`, `layers_pattern`, `exclude_modules`", "read", "by `target_modules`"),
    ("`fan_in_fan_out`", "read from the model, layer by layer", "written"),
    ("`init_lora_weights`: true, false, gaussian, eva, orthogonal, mica", "read", "true"),
    ("other `init_lora_weights`", "refused: PEFT changed the base", "as an update of the base"),
    ("`bias`, `modules_to_save`, `trainable_token_indices`", "read", "written"),
    ("`lora_bias`", "refused", "no"),
    ("`alora_invocation_tokens`", "read, as `alora`", "written"),
    ("`kasa_config`", "read, as `kasa`", "written"),
    ("`use_qalora` (of GPTQ layers)", "read, as `qalora`", "as a LoRA"),
    ("`arrow_config` (`lrft combine` makes one LoRA of several), `layer_replication`", "refused", "no"),
    ("`velora_config`, `monteclora_config`", "read, as a LoRA", "as a LoRA (`velora`, `monteclora`)"),
    ("`use_bdlora`", "read, as a LoRA", "no"),
)


def methods() -> dict[str, list[MethodCard]]:
    """PEFT's type -> the methods that are it."""
    found: dict[str, list[MethodCard]] = {}
    for card in registry.methods().values():
        if word := card.facts.get("peft_type"):
            found.setdefault(word, []).append(card)
    return found


def written(word: str, card: MethodCard) -> str:
    if word == "LORA":
        return "LORA"
    kinds = [kind for kind in (word, "LoRA") if f"PEFT {kind}" in card.exports]
    if kinds == [word]:
        return word
    return f"LORA; {word} with `own_type=true`" if word in kinds else "as LORA"


def table() -> str:
    rows = ["| type | here | folder read | folder written |", "|---|---|---|---|"]
    here = methods()
    for word in sorted({*here, *NOT_HERE, *BESIDE}):
        if word in here:
            names = " ".join(f"`{card.name}`" for card in here[word])
            each = [(card.name, written(word, card)) for card in here[word]]
            said = "; ".join(f"{name}: {how}" if len(each) > 1 else how for name, how in each)
            rows.append(f"| `{word}` | {names} | yes | {said} |")
        elif word in BESIDE:
            rows.append(f"| `{word}` | {BESIDE[word]} | yes | as what stands beside a LORA |")
        else:
            rows.append(f"| `{word}` | no: {NOT_HERE[word]} | no | no |")
    rows += ["", "| of `LORA` | folder read | folder written |", "|---|---|---|"]
    return "\n".join([*rows, *(f"| {' | '.join(row)} |" for row in LORA_SETTINGS)])
