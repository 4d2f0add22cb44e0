"""A model folder that is stored quantised, converted once into a folder of plain weights.

transformers' own loaders dequantise it, or `lrft.model.packed_integers` what those cannot. The plain folder is a base
as any other: adapters go on all its layers, it is planned, streamed, merged into and exported, and
`model.quantization` makes codes of it again.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrft.errors import LrftError, MissingError
from lrft.model.conversion import RECORD, kept
from lrft.model.load import load_config, load_model, load_skeleton, quiet
from lrft.model.weights import fingerprint
from lrft.utils.files import sha256, write_json
from lrft.utils.slow import telling

if TYPE_CHECKING:
    import torch

# quant_method of a checkpoint -> the package that it is dequantised with, "" for none
PACKED = ("gptq", "awq")
READ = {
    **{"fp8": "", "mxfp8": "", "mxfp4": "", "compressed-tensors": "compressed-tensors", "torchao": "torchao"},
    **dict.fromkeys(PACKED, ""),
}
AS_IT_IS = ("bitsandbytes",)
"""loaded as codes (`lrft.model.quantized`)"""
BESIDE = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "LICENSE*")
"""files of a model folder that are no weights: configuration, tokenizer, templates, code, licence"""
TEMPLATES = "additional_chat_templates"
INDEX = "model.safetensors.index.json"


def stored_as(folder: Path) -> str:
    """The format of a folder's codes, as its configuration calls it; "" for plain weights."""
    try:
        found = _section(json.loads((folder / "config.json").read_text("utf-8")))
    except (OSError, ValueError, AttributeError):
        return ""  # whoever loads it says what is wrong
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return "bitsandbytes"
    return str(found.get("quant_method", ""))


def plain(folder: Path, where: str) -> Path:
    """`folder`, or what is made of it where it is stored quantised.

    Raises LrftError for a format that cannot be read, MissingError without the package that reads it.
    """
    method = stored_as(folder)
    if not method or method in AS_IT_IS:
        return folder
    if method not in READ:
        raise LrftError(
            f"{where}: {folder} is stored quantised by {method}, which cannot be trained on",
            "Use the checkpoint in full precision that it was made of; model.quantization quantises that when it is "
            f"loaded. Checkpoints in {', '.join(READ)} and of bitsandbytes can be read.",
        )
    package = READ[method]
    if package and importlib.util.find_spec(package.replace("-", "_")) is None:
        raise MissingError(
            f"{where}: {folder} is stored as {method}, which requires the package {package}", f"pip install {package}"
        )
    text = f"{where}: dequantising {folder.name} from {method}, once"

    def make(part: Path) -> None:
        with telling(text):
            _convert(folder, part)

    return kept(_digest(folder), make, where=where, source=folder.name, dequantized_from=method)


def _section(config: dict[str, Any]) -> dict[str, Any]:
    """Of the whole model's configuration, or of the language model's in it."""
    found = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    return found or {}


def _others(folder: Path) -> list[Path]:
    """The files beside the weights, from `folder` on."""
    found = {path for pattern in (*BESIDE, f"{TEMPLATES}/*") for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder) for path in found if path.name not in (INDEX, RECORD))


def _digest(folder: Path) -> str:
    files = [f"{path} {sha256(folder / path)}" for path in _others(folder)]
    return hashlib.sha256("\n".join([fingerprint(folder), *files]).encode()).hexdigest()


def _convert(folder: Path, out: Path) -> None:
    """Writes what was codes in the dtype that the configuration names, all other weights and files as they are.

    Raises LrftError.
    """
    import torch

    config = load_config(folder)
    named = getattr(config, "dtype", None)
    dtype = named if isinstance(named, torch.dtype) and named.itemsize > 1 else torch.bfloat16
    out.mkdir()
    if stored_as(folder) in PACKED:
        _unpack(folder, out, dtype)
    else:
        _reload(folder, out, dtype)
    for path in _others(folder):
        if path.name != "config.json":
            (out / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / path, out / path)


def _unpack(folder: Path, out: Path, dtype: torch.dtype) -> None:
    """By the files alone."""
    from lrft.model.linear import is_transposed
    from lrft.model.packed_integers import write_dense

    if any(is_transposed(module) for module in load_skeleton(folder).modules()):
        raise LrftError(f"{folder} has layers that store their weights inputs first, which cannot be read from codes")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    placed = write_dense(folder, out, stored_as(folder), _section(config), dtype)
    for part in (config, config.get("text_config") or {}):
        part.pop("quantization_config", None)
    write_json(out / "config.json", config)
    if (folder / INDEX).is_file():
        write_json(out / INDEX, {"metadata": {}, "weight_map": placed})


def _reload(folder: Path, out: Path, dtype: torch.dtype) -> None:
    """By transformers, which dequantises while it loads."""
    import torch

    loaded = load_model(folder, dtype=dtype)
    tensors = {name: _dense(tensor) for name, tensor in loaded.state_dict().items()}
    odd = sorted(name for name, tensor in tensors.items() if tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool)
    if odd:
        raise LrftError(f"transformers did not dequantise {len(odd)} tensors of {folder}, e.g. {odd[0]}")
    # A model that was not loaded from codes: what is saved of it has the names of plain weights.
    with torch.device("meta"):
        model = type(loaded)(copy.deepcopy(loaded.config))
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    # transformers imports DeepSpeed here where that is installed, and it speaks: not into what a command prints.
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        model.save_pretrained(out)


def _dense(tensor: Any) -> Any:
    """torchao's weights are tensors of classes of their own."""
    return tensor.dequantize() if hasattr(tensor, "tensor_data_names") else tensor
