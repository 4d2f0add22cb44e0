"""What the figures were measured on: the machine and the versions of both environments."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
_ASK = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in %r:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def facts() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpu(),
        "system": f"{platform.system()} {platform.release()}",
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def gpu() -> str | None:
    """The name of the first GPU that the driver shows, or None."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.splitlines()[0].strip() if found.strip() else None


def versions(python: str | Path) -> dict[str, str]:
    """Versions in the environment of `python`; empty when there is no such environment."""
    try:
        asked = [str(python), "-c", _ASK % (PACKAGES,)]
        return json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return {}


def commit(root: Path) -> str:
    """The commit of the checkout, with a plus where files of lrft were changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "lrft") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def sources(root: Path) -> str:
    """A digest of lrft's own files: it says whether they were the same before and after a measurement."""
    digest = hashlib.sha256()
    for path in sorted((root / "lrft").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def sentence(found: dict[str, Any]) -> str:
    """One line for a page."""
    gpu_words = f", {found['gpu']}" if found.get("gpu") else ""
    return f"{found['processor']}, {found['cores']} cores, {found['memory_gb']:.0f} GB{gpu_words}, {found['system']}"


def words(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())
