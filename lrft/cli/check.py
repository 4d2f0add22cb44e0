"""`lrft check`."""

from __future__ import annotations

from pathlib import Path

from lrft.adapters import compose, targets
from lrft.adapters.attach import composition_warnings, count_trained, select_sites
from lrft.loading.from_recipe import find_base, load_data
from lrft.loading.no_effect import refuse_without_effect
from lrft.model import linear
from lrft.model.load import load_skeleton
from lrft.recipe import Recipe
from lrft.tracking.console import Reporter


def check(recipe: Recipe, path: Path) -> None:
    """`lrft check`: tokenizer, data, module names and shapes; the model is built without weights."""
    source = find_base(recipe)
    skeleton = load_skeleton(source, trust_remote_code=recipe.model.trust_remote_code)
    composition = compose.compose_section(recipe.adapter)
    sites = select_sites(skeleton, recipe.adapter, composition, recipe.where)
    trained = count_trained(sites, composition, recipe.where)
    _, prepared = load_data(recipe, source)
    refuse_without_effect(recipe, prepared)
    everything = sum(p.numel() for p in skeleton.parameters())
    linears = sum(1 for _ in linear.named_linears(skeleton))
    modules = " ".join(targets.module_names(site.name for site in sites))
    with Reporter(None) as reporter:
        reporter.table(
            [
                ("model", [recipe.masked(recipe.model.name), f"{everything / 1e6:,.1f} M parameters"]),
                (
                    "adapter",
                    [
                        f"{len(sites)} of {linears} linear layers: {modules}",
                        f"{trained / 1e6:,.2f} M trained ({trained / (everything + trained):.2%})",
                    ],
                ),
                ("data", prepared.report.lines()),
            ]
        )
        for text in composition_warnings(composition, sites, skeleton):
            reporter.warn(text)
        reporter.line(f"{path}: nothing wrong was found")
