"""What the runs of a comparison are trained on, by content: files of data, weights of the base.

A finished run is not trained again, so nothing else would notice that a file has changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrft.compare.jobs import Job
from lrft.data.config import inputs
from lrft.errors import LrftError, UsageError
from lrft.loading.from_recipe import find_base
from lrft.loading.others import locate_others
from lrft.model.weights import fingerprint, remembered
from lrft.recipe import Recipe
from lrft.utils.files import sha256

KEPT = "content"
"""of a job's record"""

Contents = dict[str, str]
"""hash by the name that a message has for it"""


class Hashes:
    """Hashes of recipes; runs of one comparison have most files in common."""

    def __init__(self) -> None:
        self._known: dict[str, Contents] = {}

    def of(self, recipe: Recipe) -> Contents:
        """Hashes of local data files, of the base, and of other models that the objective names. Empty where these
        cannot be read: the run itself says why."""
        key = f"{recipe.model!r} {recipe.data!r} {recipe.training.objective!r}"
        if key not in self._known:
            try:
                self._known[key] = contents(recipe)
            except LrftError:
                self._known[key] = {}
        return self._known[key]


def contents(recipe: Recipe) -> Contents:
    """Raises LrftError in its kinds, as training would."""
    paths = [Path(source.path) for item in inputs(recipe.data, where=recipe.where) for source in item.sources]
    folder = find_base(recipe)
    hashes = {str(path): digest(path) for path in paths if path.is_file()}
    others = {f"{other.option} {other.name}": other.fingerprint for other in locate_others(recipe, folder)}
    return {**hashes, f"the base {recipe.model.name}": fingerprint(folder), **others}


def digest(path: Path) -> str:
    return remembered("digests", [path], lambda: sha256(path))


def refuse_other_contents(jobs: Sequence[Job], hashes: Hashes) -> None:
    """Raises UsageError when a run was trained on other content than its recipe's files have now."""
    for job in jobs:
        kept = job.record.get(KEPT)
        if not isinstance(kept, dict) or not (job.folder / "run.json").is_file():
            continue
        now = hashes.of(job.recipe)
        changed = [name for name in kept if now.get(name) != kept[name]]
        if changed:
            raise UsageError(
                f"{changed[0]} has changed since {job.folder} was trained: its runs cannot be compared with new ones",
                "Choose another output_dir, or move the old one.",
            )
