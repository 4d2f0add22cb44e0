"""Whose adapter folder is it. Reads nothing but names, so that a wrong path is answered before torch is loaded."""

from __future__ import annotations

from pathlib import Path

CONFIG = "adapter_config.json"
"""PEFT's"""
OURS = "lrft.json"


def is_peft_folder(folder: Path) -> bool:
    """Whether PEFT wrote the folder and lrft did not."""
    return (folder / CONFIG).is_file() and not (folder / OURS).is_file()
