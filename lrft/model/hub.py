"""Resolve the name of a base model to its local folder."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from lrft.errors import MissingError, nearest
from lrft.model.dequantized import BESIDE, plain
from lrft.model.gguf import converted
from lrft.model.weights import weight_files
from lrft.utils.hub_connection import unreachable

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
HUB_FILES = ["*.safetensors", *BESIDE]
"""Sub-folders hold the same weights in other formats."""
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")  # as in recipes


def find_model(name: str, revision: str | None = None, *, where: str = "model.name") -> Path:
    """The folder that holds the base `name`: a folder, a `.gguf` file, or a hub id.

    A hub id is looked up in the local hub cache first; the network is asked only when it is not there complete, and an
    unreachable hub fails within seconds. A `.gguf` file is converted once under the cache folder, and so is a folder
    that is stored quantised (`lrft.model.dequantized`). `where` is the recipe key or argument that gave the name, for
    messages.

    Raises:
        MissingError: there is no such folder, file or hub id, or the hub cannot be reached.
        LrftError: the folder or file is there and is not a usable model.
    """
    path = Path(_from_environment(name, where)).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise MissingError(f"{where}: there is no file {name}", _close(path))
        return converted(path.resolve(), where)
    if path.is_dir():
        weight_files(path)
        return plain(path, where)
    if not HUB_ID.fullmatch(name):
        raise MissingError(f"{where}: there is no folder {name}", _close(path))
    return plain(_from_hub(name, revision, where), where)


def _from_environment(name: str, where: str) -> str:
    """An adapter keeps ${NAME} and ${NAME:-default} of its recipe: files never hold an environment variable's value."""

    def value(found: re.Match[str]) -> str:
        if (filled := os.environ.get(found[1], found[2])) is None:
            raise MissingError(f"{where}: {name}: the environment variable {found[1]} is not set")
        return filled

    return REFERENCE.sub(value, name)


def _close(path: Path) -> str | None:
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    names = nearest(path.name, beside)
    return f"Close: {path.parent / names[0]}" if names else None


def _from_hub(name: str, revision: str | None, where: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    patterns: dict[str, Any] = {"allow_patterns": HUB_FILES, "ignore_patterns": ["*/*"]}
    with contextlib.suppress(OSError, MissingError):
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, **patterns))
        weight_files(folder)  # an interrupted download leaves a snapshot without its weights
        return folder
    at = f"{name} at revision {revision}" if revision else name
    trouble = _unreachable()
    if trouble:
        raise MissingError(
            f"{where}: {at} was not found locally and the hub cannot be reached ({trouble})",
            _close(Path(name))
            or "Use a folder or a .gguf file, or run once with network access to fill the local cache.",
        )
    try:
        folder = Path(snapshot_download(name, revision=revision, **patterns))
    except RevisionNotFoundError as error:
        raise MissingError(f"{where}: the hub has {name}, but no revision {revision}") from error
    except GatedRepoError as error:
        hint = "Accept its terms on its hub page and set HF_TOKEN."
        raise MissingError(f"{where}: {name} is gated", hint) from error
    except RepositoryNotFoundError as error:
        hint = "Check the spelling; for a private model set HF_TOKEN. There is no local folder of this name either."
        raise MissingError(f"{where}: the hub has no model {name}", hint) from error
    except _download_errors() as error:
        raise MissingError(f"{where}: {at} was not downloaded: {error}", "Run the command again.") from error
    weight_files(folder)
    return folder


def _unreachable() -> str | None:
    """Why nothing can be downloaded, or None."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return unreachable()


def _download_errors() -> tuple[type[Exception], ...]:
    """Also the base error of huggingface_hub's HTTP library: httpx2 since its version 2, httpx before."""
    transport = (sys.modules[name].HTTPError for name in ("httpx2", "httpx") if name in sys.modules)
    return (OSError, ValueError, *transport)
