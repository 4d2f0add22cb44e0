"""The frozen base model: where it is, how it is loaded, and the fingerprint that identifies its weights.

A base is named by a local folder, a `.gguf` file or a hub id; `resolve` turns each of them into a folder of
safetensors. Everything else takes that folder and never touches the network.
"""

from __future__ import annotations

from .find import resolve
from .load import imagined, importing, load_config, load_model, load_tokenizer, position_limit, refuse_missing, skeleton
from .weights import cache_dir, fingerprint, remembered, weight_files

__all__ = [
    "cache_dir",
    "fingerprint",
    "imagined",
    "importing",
    "load_config",
    "load_model",
    "load_tokenizer",
    "position_limit",
    "refuse_missing",
    "remembered",
    "resolve",
    "skeleton",
    "weight_files",
]
