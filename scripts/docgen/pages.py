"""The generated pages of the documentation; a test says when one is stale."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from docgen import combinations, evidence, measured_adapters, peft_types, rooms
from lrft import recipe as recipes
from lrft import registry
from lrft.cli import method_list
from lrft.utils import files


def pages(root: Path) -> dict[Path, str]:
    """Each generated page below the repository `root` and the text that it should have."""
    readme, architecture = root / "README.md", root / "docs" / "architecture.md"
    preferences, embeddings = root / "docs" / "preferences.md", root / "docs" / "embeddings.md"
    adapters, measured = root / "docs" / "adapters.md", measured_adapters.kept(root)
    of_adapters = {
        "types of PEFT": peft_types.table(),
        "steps of experts": measured_adapters.experts(measured["experts"]),
        "conversions": measured_adapters.conversions(measured["conversions"]),
    }
    return {
        adapters: marked(adapters, of_adapters),
        root / "docs" / "recipe.md": recipes.reference(),
        root / "docs" / "methods.md": method_list.markdown(),
        root / "docs" / "combinations.md": combinations.page(),
        root / "lrft" / "compare" / "evidence.json": evidence.text(root),
        root / "docs" / "rooms.svg": rooms.picture(),
        architecture: marked(architecture, {"rooms": rooms.table()}),
        readme: marked(readme, {"methods": counts()}),
        preferences: marked(preferences, {"options": options(("preference", "kto"))}),
        embeddings: marked(embeddings, {"options": options(("pairs",))}),
    }


def marked(page: Path, made: dict[str, str]) -> str:
    """The text of `page` with what was made between the markers of each name."""
    text = page.read_text(encoding="utf-8")
    for name, own in made.items():
        begin, end = f"<!-- {name}: written by scripts/docs -->", "<!-- end -->"
        filled = f"{begin}\n{own}\n{end}"
        text = re.sub(f"{re.escape(begin)}.*?{end}", lambda _, filled=filled: filled, text, flags=re.S)
    return text


def counts() -> str:
    """How many names of each kind there are under adapter.method, the most first."""
    kinds = Counter(card.kind for card in registry.methods().values())
    kinds["preset"] = len(registry.PRESETS)
    rows = [f"| {kind} | {count} |" for kind, count in kinds.most_common()]
    return "\n".join([f"| kind | {kinds.total()} names |", "|---|---:|", *rows])


def options(kinds: tuple[str, ...]) -> str:
    """The options of the objectives that take these kinds of rows."""
    names = [name for kind in kinds for name in registry.objectives_for(kind)]
    rows = [
        f"| `{name}` | `{knob.name}` | `{str(knob.default).lower()}` | {knob.help} |"
        for name in names
        for knob in registry.declared("objectives")[name].knobs
    ]
    return "\n".join(["| objective | option | default | |", "|---|---|---|---|", *rows])


def main() -> None:
    for path, text in pages(Path(__file__).parents[2]).items():
        files.write_text(path, text)


if __name__ == "__main__":
    main()
