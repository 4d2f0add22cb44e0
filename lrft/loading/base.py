"""The base of a saved adapter: where it lies, and whether it is the one that was trained on. Needs no transformers."""

from __future__ import annotations

from pathlib import Path

from lrft.adapters.storage import SavedAdapter
from lrft.errors import CheckFailed, MissingError
from lrft.model.hub import find_model
from lrft.model.weights import fingerprint


def base_of(saved: SavedAdapter, named: str | None) -> Path:
    """The base's folder: as `named` by the user, else as the adapter says. Raises MissingError with the way out."""
    if named is not None:
        return find_model(named, where="--base")
    if saved.info["base"]["name"] is None:
        raise MissingError(f"{saved.folder} does not record its base model", "Pass the base model with --base FOLDER.")
    try:
        return find_model(saved.info["base"]["name"], saved.info["base"].get("revision"), where="the adapter's base")
    except MissingError as error:
        raise MissingError(error.message, "Pass the base model with --base FOLDER.") from error


def refuse_other_base(saved: SavedAdapter, source: Path, accepted: bool) -> None:
    trained_on = saved.info["base"].get("fingerprint")
    if not trained_on or accepted:
        return
    here = fingerprint(source)
    if trained_on != here:
        raise CheckFailed(
            f"the adapter was trained on a base with fingerprint {trained_on[:16]}; {source} has {here[:16]}",
            "Pass the base that it was trained on with --base, or accept this one with --accept-other-base.",
        )
