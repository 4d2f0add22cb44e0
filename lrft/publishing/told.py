"""What is known of a folder that is to be published, from its adapter, its run and its base."""

from __future__ import annotations

import getpass
import re
from pathlib import Path

import yaml

from lrft.adapters.peft_import import read_any
from lrft.adapters.storage import SavedAdapter
from lrft.errors import UsageError
from lrft.model.hub import HUB_ID
from lrft.publishing.push_card import Told
from lrft.publishing.stage import kind_of
from lrft.runs.locate import adapter_folder, adapter_of, recipe_of, run_of

FRONT = re.compile(r"\A---\n(.*?)\n---", re.S)


def chosen_folder(source: Path) -> Path:
    """A run's best adapter, or the folder itself. Raises UsageError for neither."""
    if (source / "run.json").is_file():
        return adapter_of(source)
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder")
    kind_of(source)
    return source


def tell_of(folder: Path, repo: str, base_name: str | None, licence: str | None) -> Told:
    """What the card says. Raises UsageError for a model that lies in no run: there is nothing to say of it."""
    kind, run = kind_of(folder), run_of(folder / "x")
    saved = saved_for(folder, kind.endswith("adapter"), run)
    name = str(saved.info["base"]["name"] or "base")
    on_hub = base_name is not None or is_hub_id(name)
    return Told(
        repo=repo,
        kind=kind,
        base=base_name or (name if on_hub else re.sub(r"\$\{[^}]*\}", "", name).rstrip("/").rpartition("/")[2]),
        base_on_hub=on_hub,
        methods=tuple(entry["name"] for entry in saved.info["methods"]),
        licence=licence or licence_in(Path(name).expanduser()),
        run=run,
        recipe=recipe_of(saved.folder),
        file=next((path.name for path in sorted(folder.glob("*.gguf"))), ""),
    )


def saved_for(folder: Path, adapter: bool, run: Path | None) -> SavedAdapter:
    if adapter:
        return read_any(adapter_folder(folder))
    if run is None:
        raise UsageError(f"{folder} lies in no run: only adapters are published from elsewhere")
    return read_any(adapter_of(run))


def is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and "/" in name and not Path(name).exists()


def licence_in(base: Path) -> str | None:
    """What the base's README says to the hub."""
    try:
        front = FRONT.match((base / "README.md").read_text(encoding="utf-8"))
        found = yaml.safe_load(front[1]) if front else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    licence = found.get("license") if isinstance(found, dict) else None
    return licence if isinstance(licence, str) else None


def private_here(folder: Path) -> dict[str, str]:
    """Texts that name this machine: paths of the folder and of its user."""
    places = {folder.resolve(), Path.cwd(), Path.home()}
    run = run_of(folder / "x")
    if run is not None:
        places |= {run.resolve(), run.resolve().parent}
    named = {str(place): f"the path {place}" for place in places if len(place.parts) > 1}
    user = getpass.getuser()
    return named | {f"/{user}/": f"the path of the user {user}"}
