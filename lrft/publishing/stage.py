"""The folder that leaves: the result's files without what is this machine's own, and its card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lrft.adapters.storage import rename_base
from lrft.errors import UsageError
from lrft.export.merge import goes_along
from lrft.model.embedder import stored_embedder
from lrft.publishing.push_card import Kind
from lrft.utils import files

WEIGHTS = {".safetensors", ".gguf"}
NO_MODEL_FILES = {"trainer_state.json", "conversion.json"}


def kind_of(folder: Path) -> Kind:
    """What a folder holds. Raises UsageError for one that cannot be published."""
    if any(folder.glob("*.gguf")):
        return "gguf"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if (folder / "lrft.json").is_file():
        return "own adapter"
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return "model"
    raise UsageError(f"{folder} holds neither an adapter nor a model")


def stage(source: Path, out: Path, base: str) -> None:
    """Fill the folder `out` with what of `source` is published. base: the name of the base, without a local path.

    Weights are linked where the file system allows it, other files are copied.
    """
    for path in sorted(source.iterdir()):
        if path.suffix in WEIGHTS:
            try:
                os.link(path.resolve(), out / path.name)
            except OSError:
                shutil.copyfile(path, out / path.name)
        elif (goes_along(path) or path.name == "Modelfile") and path.name not in NO_MODEL_FILES:
            shutil.copyfile(path, out / path.name)
    embedder = stored_embedder(source)
    if embedder is not None:
        embedder.save(out)
    if (out / "lrft.json").is_file() or (out / "adapter_config.json").is_file():
        rename_base(out, base)
    for name in ("config.json", "tokenizer_config.json"):
        if (out / name).is_file():
            values = files.read_json(out / name)
            kept = {key: value for key, value in values.items() if key not in ("_name_or_path", "name_or_path")}
            if kept != values:
                files.write_json(out / name, kept)
