"""From the path that a user gives to the run and the adapter that are meant."""

from __future__ import annotations

from pathlib import Path

from lrft import recipe as recipes
from lrft.errors import UsageError
from lrft.recipe import Recipe
from lrft.runs.verdict import worse_than_base
from lrft.utils import files
from lrft.utils.adapter_folders import is_peft_folder


def adapter_folder(source: Path) -> Path:
    """The adapter folder meant by a run folder (its best), or an adapter folder of lrft or PEFT. Raises UsageError."""
    return source if is_peft_folder(source) else adapter_of(source)


def adapter_of(source: Path) -> Path:
    """The adapter folder meant by a run folder (its best) or an adapter folder. Raises UsageError."""
    if (source / "lrft.json").is_file():
        return source
    for name in ("best", "last"):
        if (source / name / "lrft.json").is_file():
            return source / name
    if (source / "run.json").is_file():
        raise UsageError(f"{source} is a run that has no checkpoint yet")
    raise UsageError(f"{source} is neither a run nor an adapter folder")


def choice_note(source: Path, adapter: Path) -> str:
    """Why `adapter`, found by `adapter_of` in the run `source`, is not its best state; "" when it is, or when `source`
    is no run."""
    if source == adapter or not (source / "run.json").is_file():
        return ""
    found = files.read_json(source / "run.json")
    result = found.get("result") if isinstance(found, dict) else None
    worse = worse_than_base(result) if isinstance(result, dict) else ""
    if worse:
        return f"{source} is {worse}; {adapter.name}/ is taken all the same"
    return "" if adapter.name == "best" else f"{source} has no best checkpoint yet: {adapter.name}/ is taken"


def run_of(adapter: Path) -> Path | None:
    """The run folder that an adapter lies in, or None."""
    return next((p for p in adapter.resolve().parents if (p / "run.json").is_file()), None)


def recipe_of(adapter: Path) -> Recipe | None:
    """The recipe of the run that an adapter lies in, or None."""
    run = run_of(adapter)
    if run is None or not (run / "resolved.yaml").is_file():
        return None
    return recipes.load(run / "resolved.yaml")


def trusts_remote_code(adapter: Path) -> bool:
    """Whether the recipe of the run that the adapter lies in says so. An adapter by itself is never believed."""
    recipe = recipe_of(adapter)
    return recipe is not None and recipe.model.trust_remote_code
