"""The file of a comparison: its keys, read as strictly as a recipe. Needs neither torch nor the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lrft.compare import metric as metrics
from lrft.compare.grid import NAME, Variant, find_grid, find_variants
from lrft.errors import Problem, RecipeError, UsageError, nearest
from lrft.recipe import env_vars
from lrft.recipe.extends import Files
from lrft.recipe.nodes import Node, Source
from lrft.recipe.problems import Problems, Refused
from lrft.recipe.schema import Recipe
from lrft.recipe.yaml_parser import decode, parse, read_bytes
from lrft.runs.after_training import shown

Budget = Literal["parameters", "rank", "none"]

KEYS: dict[str, str] = {
    "recipe": "The recipe shared by all runs: a recipe file, relative to this one, or a recipe's keys. Required.",
    "runs": "The runs by name: a method, a list of methods, or the recipe's keys that differ. Required.",
    "grid": "Recipe keys with lists of values: every run is trained at each combination.",
    "seeds": "Values of training.seed, one run each. Default: [1, 2, 3].",
    "budget": "parameters (default): choose each rank to match the baseline's trainable parameters; rank: use the "
    "baseline's rank; none.",
    "baseline": "Name of the reference run. Default: the first.",
    "metric": "loss, perplexity, exact_match or a figure of the objective, on the validation rows. Default: loss.",
    "forgetting": "A file of general text: its loss before and after training.",
    "output_dir": "Output folder of the comparison. Required.",
}
BUDGETS: tuple[Budget, ...] = ("parameters", "rank", "none")
SEEDS = (1, 2, 3)
MOST_RUNS = 1000


@dataclass(frozen=True)
class Comparison:
    """What a file asks for. Attributes are its keys; `variants` are the runs, each with its points of the grid."""

    path: Path
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    budget: Budget
    baseline: str
    metric: str
    forgetting: str | None
    output: Path

    @property
    def base(self) -> Variant:
        return next(variant for variant in self.variants if variant.name == self.baseline)

    def first_recipe(self) -> Recipe:
        """The baseline's, at its first point and seed."""
        return self.base.recipe(self.base.points[0], seed=self.seeds[0], output=self.output)[0]

    @property
    def lower_is_better(self) -> bool:
        return metrics.lower_is_better(self.metric)


def read(path: Path) -> Comparison:
    """The comparison at `path`, with every recipe that it asks for checked.

    Raises UsageError when the file cannot be read, otherwise RecipeError with every problem and its place.
    """
    problems = Problems()
    try:
        source = Source(str(path))
        root = parse(decode(read_bytes(path), source), source, problems)
        if not isinstance(root.value, dict):
            raise Refused(root.place, "expected keys such as `recipe:` and `runs:` at the left margin")
        comparison = _read(path, root, problems)
    except Refused as refused:
        problems.add(refused.place, refused.text)
        raise RecipeError(problems.sorted()) from None
    found = [*problems.sorted(), *_recipe_problems(comparison, str((root.child("metric") or root).place))]
    if found:
        raise RecipeError(list(dict.fromkeys(found)))
    return comparison


def _read(path: Path, root: Node, problems: Problems) -> Comparison:
    for key in root.value:
        if key not in KEYS:
            problems.add(root.keys[key], unknown_key(key))
    budget = _choice(root, "budget", BUDGETS, problems)
    base = _base(path, root, problems)
    grid = find_grid(root.child("grid"), problems, ranks=budget == "none")
    variants = find_variants(root, base, grid, problems) if base is not None else ()
    seeds = _seeds(root.child("seeds"), problems)
    if (made := len(seeds) * sum(len(variant.points) for variant in variants)) > MOST_RUNS:
        problems.add((root.child("grid") or root).place, f"this makes {made:,} runs; at most {MOST_RUNS:,}")
        variants = variants[:1]
    output = _text(root, "output_dir", problems)
    if output is None:
        problems.add(root.place, f"output_dir is required. {KEYS['output_dir']}".removesuffix(" Required."))
    return Comparison(
        path=path,
        variants=variants,
        seeds=seeds,
        budget=budget,
        baseline=_baseline(root, problems),
        metric=_metric(root.child("metric"), problems),
        forgetting=_existing(root, "forgetting", problems),
        output=Path(output or ""),
    )


def unknown_key(key: str) -> str:
    """The sentence for a key that no comparison has."""
    if key in Recipe.model_fields or key == "extends" or key.partition(".")[0] in Recipe.model_fields:
        return f"{key} is a recipe key: put it under recipe, or into a run"
    close = nearest(key, KEYS)
    return f"{key[:60]} is not a key. " + (f"Did you mean {close[0]}?" if close else f"Keys here: {', '.join(KEYS)}")


def _base(path: Path, root: Node, problems: Problems) -> Node | None:
    """The tree of what all runs have in common, or None when there is none to go on with."""
    node = root.child("recipe")
    files = Files(problems)
    files.count = 1  # this file is the first: problems are sorted by it
    if node is None or node.value is None:
        problems.add(root.place, f"recipe is required. {KEYS['recipe']}".removesuffix(" Required."))
        return None
    if isinstance(node.value, dict):
        return files.over_bases(path, node)
    name = env_vars.fill(node, problems).value
    if not isinstance(name, str) or not name:
        problems.add(node.place, "recipe: expected a file, or a map of a recipe's keys")
        return None
    try:
        return files.read(path.parent / Path(name).expanduser())
    except UsageError as error:
        problems.add(node.place, f"recipe: {error.message}")
        return None


def _text(root: Node, key: str, problems: Problems) -> str | None:
    node = root.child(key)
    if node is None or node.value is None:
        return None
    value = env_vars.fill(node, problems).value
    if not isinstance(value, str) or not value:
        problems.add(node.place, f"{key}: expected a path")
        return "."  # it was given: nothing more is to be said about it
    return value


def _existing(root: Node, key: str, problems: Problems) -> str | None:
    value = _text(root, key, problems)
    if value is not None and not Path(value).exists():
        problems.add(root.value[key].place, f"{key}: there is no file {value}")
    return value


def _choice(root: Node, key: str, words: tuple[Any, ...], problems: Problems) -> Any:
    """One of `words`, the first when the key is not given."""
    node = root.child(key)
    if node is None or node.value is None:
        return words[0]
    if node.value not in words:
        close = nearest(node.value, words) if isinstance(node.value, str) else []
        hint = f". Did you mean {close[0]}?" if close else ""
        problems.add(node.place, f"{key}: expected one of {', '.join(words)}{hint}")
        return words[0]
    return node.value


def _metric(node: Node | None, problems: Problems) -> str:
    if node is None or node.value is None:
        return metrics.LOSS
    if node.value not in metrics.every_metric():
        problems.add(node.place, metrics.unknown(node.value))
        return metrics.LOSS
    return str(node.value)


def _seeds(node: Node | None, problems: Problems) -> tuple[int, ...]:
    if node is None or node.value is None:
        return SEEDS
    if not isinstance(node.value, list) or not node.value:
        problems.add(node.place, "seeds: expected a list of whole numbers, such as [1, 2, 3]")
        return SEEDS
    seeds: list[int] = []
    for item in node.value:
        if type(item.value) is not int or not 0 <= item.value < 2**31:
            problems.add(item.place, "seeds: expected whole numbers from 0")
        elif item.value in seeds:
            problems.add(item.place, f"seeds: {item.value} is listed twice")
        else:
            seeds.append(item.value)
    return tuple(seeds)


def _baseline(root: Node, problems: Problems) -> str:
    """The name of the baseline; the first run's when none is given."""
    node, runs = root.child("baseline"), root.child("runs")
    items = runs.value if runs is not None and isinstance(runs.value, dict | list) else ()
    names = [item if isinstance(item, str) else item.value for item in items]
    names = [name for name in names if isinstance(name, str) and NAME.fullmatch(name)]
    if node is None or node.value is None:
        return names[0] if names else ""
    if node.value not in names:
        close = nearest(str(node.value), names)
        hint = f"Did you mean {close[0]}?" if close else f"Runs here: {', '.join(names)}"
        problems.add(node.place, f"baseline: {node.value!s:.60} is not a run. {hint}")
        return names[0] if names else ""
    return str(node.value)


def _recipe_problems(comparison: Comparison, where: str) -> list[Problem]:
    """What is wrong with the recipes of the runs. What several have in common is said once, by the caller.

    where: the metric was given
    """
    found: list[Problem] = []
    good: list[Recipe] = []
    for variant in comparison.variants:
        for point in variant.points:
            try:
                recipe, _ = variant.recipe(point, seed=0, output=comparison.output)
            except RecipeError as error:
                found += error.problems
                continue
            if recipe.data.validation == "none":
                text = f"data.validation: none leaves no validation rows to evaluate {comparison.metric} on"
                found.append(Problem(recipe.where("data.validation"), text))
            if shown(recipe):
                text = "after: its commands follow one training, not each run of a comparison. Remove it"
                found.append(Problem(recipe.where("after"), text))
            good.append(recipe)
    return [*found, *(Problem(where, text) for text in metrics.unfit(comparison.metric, good))]
