"""Folders of PEFT's types that adapt no layer: norms alone, or rows of the embedding alone.

Here both are trained beside a method (`lrft.adapters.beside`). Such a folder is put as one of PEFT's LoRA that has
nothing but what was trained beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrft.adapters.peft_beside import PREFIX, ROWS
from lrft.adapters.peft_type import COMMON

NORMS, TOKENS = "LN_TUNING", "TRAINABLE_TOKENS"
ALONE = (NORMS, TOKENS)
OF_NORMS = "ln_tuning_layers"
OF_TOKENS = "trainable_tokens_delta"


def as_lora(config: Mapping[str, Any], flat: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of the folder, as a LoRA's would be. Raises ValueError for a setting that is not known.

    A head that is the embedding's matrix has the same rows in the file again: they follow those of the embedding.
    """
    known = {*COMMON, "modules_to_save", *(("token_indices",) if config["peft_type"] == TOKENS else ())}
    if unknown := [key for key, value in config.items() if value and key not in known]:
        raise ValueError(f"{unknown[0]} is set, a setting that lrft does not know")
    if config["peft_type"] == TOKENS:
        rows = {name: tensor for name, tensor in flat.items() if name.endswith(f".{OF_TOKENS}")}
        twice = [name for name, tensor in rows.items() if is_head(name) and is_among(tensor, name, rows)]
        tensors = {name: tensor for name, tensor in flat.items() if name not in twice}
        named = {name.replace(f".{OF_TOKENS}", f".{ROWS}"): tensor for name, tensor in tensors.items()}
        return {**config, "trainable_token_indices": config["token_indices"]}, named
    norms = [name.partition(f".{OF_NORMS}.")[0].removeprefix(PREFIX) for name in flat if f".{OF_NORMS}." in name]
    full = [*(config.get("modules_to_save") or ()), *dict.fromkeys(norms)]
    return {**config, "modules_to_save": full}, {name.replace(f".{OF_NORMS}", ""): t for name, t in flat.items()}


def is_head(name: str) -> bool:
    return name.removesuffix(f".{OF_TOKENS}").rpartition(".")[2] in ("lm_head", "embed_out", "output")


def is_among(tensor: Tensor, own: str, rows: Mapping[str, Tensor]) -> bool:
    return any(name != own and torch.equal(tensor, other) for name, other in rows.items())
