"""The rank at which each method trains about as many numbers as lora: python -m performance.equal MODEL RANK

Prints JSON: {name: {"kind", "rank", "trained"}}. What is known of lrft's inside stands here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def ranks(folder: Path, rank: int) -> dict[str, dict[str, object]]:
    """Of every method that builds; a part stands over lora at lora's own rank."""
    from lrft import recipe, registry
    from lrft.adapters import compose
    from lrft.adapters.attach import count_trained, select_sites
    from lrft.errors import RecipeError
    from lrft.model.load import load_skeleton

    skeleton = load_skeleton(folder)

    def trained(name: str, at: int) -> int | None:
        adapter = recipe.parse_adapter({"method": name, "rank": at})
        composition = compose.compose((entry.name, entry.options) for entry in adapter.method)
        try:
            return count_trained(select_sites(skeleton, adapter, composition, str), composition)
        except RecipeError:
            return None

    wanted = trained("lora", rank) or 0
    found: dict[str, dict[str, object]] = {}
    for card in registry.methods().values():
        counts = {at: count for at in (RANKS if card.builds else (rank,)) if (count := trained(card.name, at))}
        # Of ranks that train the same, the recipe's own: the rank says nothing there.
        best = min(counts, key=lambda at: (abs(counts[at] - wanted), at != rank), default=rank)
        found[card.name] = {"kind": card.kind, "rank": best, "trained": counts.get(best)}
    return found


if __name__ == "__main__":
    print(json.dumps(ranks(Path(sys.argv[1]), int(sys.argv[2]))))
