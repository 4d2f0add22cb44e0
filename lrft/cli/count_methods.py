"""`lrft methods --recipe`: trainable parameters of each method on the recipe's model."""

from __future__ import annotations

import json

from lrft import registry
from lrft.adapters import compose
from lrft.adapters.attach import count_trained, select_sites
from lrft.cli import methods
from lrft.errors import RecipeError
from lrft.loading.from_recipe import find_base
from lrft.model.load import load_skeleton
from lrft.recipe import Recipe


def count_methods(recipe: Recipe, *, kind: str | None, as_json: bool) -> None:
    """`lrft methods --recipe`: what each method would train in the place of the recipe's own."""
    source = find_base(recipe)
    skeleton = load_skeleton(source, trust_remote_code=recipe.model.trust_remote_code)
    everything = sum(p.numel() for p in skeleton.parameters())
    found: dict[str, int | str] = {}
    for card in methods.of_kind(registry.methods(), kind):
        composition = compose.compose([(card.name, {})])
        adapter = recipe.adapter.model_copy(update={} if composition.scale_owner else {"alpha": "auto", "scale": None})
        try:
            sites = select_sites(skeleton, adapter, composition, recipe.where)
            found[card.name] = count_trained(sites, composition, recipe.where)
        except RecipeError as error:
            found[card.name] = error.problems[0].text.removeprefix("adapter: ")
    if as_json:
        print(json.dumps(found, indent=1))
        return
    width = max(map(len, found))
    for name, count in found.items():
        if isinstance(count, int):
            print(f"{name:<{width}}  {count / 1e6:>10,.3f} M  {count / (everything + count):>7.2%}")
        else:
            print(f"{name:<{width}}  not here: {count}")
