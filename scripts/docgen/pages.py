"""The generated pages of the documentation; a test says when one is stale."""

from __future__ import annotations

import re
from pathlib import Path

from docgen import combinations
from lrft import recipe as recipes
from lrft import registry
from lrft.cli import methods
from lrft.utils import files

BEGIN, END = "<!-- methods: written by scripts/docs -->", "<!-- end -->"


def pages(root: Path) -> dict[Path, str]:
    """Each generated page below the repository `root` and the text that it should have."""
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    marked = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.S)
    return {
        root / "docs" / "recipe.md": recipes.reference(),
        root / "docs" / "methods.md": methods.markdown(),
        root / "docs" / "combinations.md": combinations.page(),
        readme: marked,
    }


def table() -> str:
    """The README's table of methods: the words of each kind."""
    words: dict[str, list[str]] = {}
    for card in registry.methods().values():
        words.setdefault(card.kind, []).append(f"`{card.name}`")
    words["preset"] = [f"`{name}`" for name in registry.PRESETS]
    rows = [f"| {kind} | {' '.join(named)} |" for kind, named in sorted(words.items(), key=lambda one: -len(one[1]))]
    return "\n".join(["| kind | words |", "|---|---|", *rows])


def main() -> None:
    for path, text in pages(Path(__file__).parents[2]).items():
        files.write_text(path, text)


if __name__ == "__main__":
    main()
