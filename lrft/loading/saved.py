"""Base, adapter and tokenizer of a saved run: loaded as they were when it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lrft import recipe as recipes
from lrft.adapters.storage import SavedAdapter, load_adapter, read_adapter
from lrft.errors import CheckFailed, MissingError, UsageError
from lrft.model.hub import find_model
from lrft.model.load import load_model, load_tokenizer
from lrft.model.weights import fingerprint
from lrft.recipe import DataSection
from lrft.runs.locate import adapter_of, run_of, trusts_remote_code
from lrft.utils.hardware import DTYPES


def load_target(target: str, base_model: str | None, trusted: bool) -> tuple[Any, Any, DataSection | None, Path]:
    """(model, tokenizer, the run's data section or None, the base's folder) of a run, an adapter or a model.

    trusted: code that the model brings along may be executed. A run's own recipe can say so too.
    """
    path = Path(target)
    if (path / "run.json").is_file() or (path / "lrft.json").is_file():
        adapter = adapter_of(path)
        saved = read_adapter(adapter)
        folder = base_of(saved, base_model)
        refuse_other_base(saved, folder, accepted=False)
        trusted = trusted or trusts_remote_code(adapter)
        dtype = DTYPES[saved.info["base"].get("dtype", "float32")]
        model = load_model(folder, dtype=dtype, quantization=saved.quantization, trust_remote_code=trusted)
        load_adapter(model, adapter)
        run = run_of(adapter)
        section = recipes.load(run / "resolved.yaml").data if run else None
        return on_device(model), load_tokenizer(adapter, trusted), section, folder
    if base_model:
        raise UsageError(f"--base goes with a run or an adapter; {target} is a model by itself")
    folder = find_model(target, where="the model")
    dtype = DTYPES["float32"] if not gpu() else DTYPES["bfloat16"]
    model = load_model(folder, dtype=dtype, trust_remote_code=trusted)
    return on_device(model), load_tokenizer(folder, trusted), None, folder


def gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def on_device(model: Any) -> Any:
    return model.to("cuda") if gpu() else model


def base_of(saved: SavedAdapter, named: str | None) -> Path:
    """The base's folder: as `named` by the user, else as the adapter says. Raises MissingError with the way out."""
    if named is not None:
        return find_model(named, where="--base")
    if saved.info["base"]["name"] is None:
        raise MissingError(f"{saved.folder} does not name its base", "Say where the base lies: --base FOLDER.")
    try:
        return find_model(saved.info["base"]["name"], saved.info["base"].get("revision"), where="the adapter's base")
    except MissingError as error:
        raise MissingError(error.message, "Say where the base lies: --base FOLDER.") from error


def refuse_other_base(saved: SavedAdapter, source: Path, accepted: bool) -> None:
    trained_on = saved.info["base"].get("fingerprint")
    if not trained_on or accepted:
        return
    here = fingerprint(source)
    if trained_on != here:
        raise CheckFailed(
            f"the adapter was trained on a base with fingerprint {trained_on[:16]}; {source} has {here[:16]}",
            "Name the base that it was trained on with --base, or merge into this one with --accept-other-base.",
        )


def trained_base(saved: SavedAdapter, folder: Path, device: torch.device, trusted: bool) -> Any:
    """The base as it was when the adapter was trained on it, computing in float32."""
    if saved.quantization == "none":
        return loaded(folder, device, trusted)
    dtype = DTYPES[saved.info["base"].get("dtype", "float32")]  # the codes are made from the weights in this dtype
    model: Any = load_model(folder, dtype=dtype, quantization=saved.quantization, trust_remote_code=trusted)
    return model.float().to(device)


def loaded(folder: Path, device: torch.device, trusted: bool) -> Any:
    model: Any = load_model(folder, dtype=torch.float32, trust_remote_code=trusted)
    return model.to(device)
