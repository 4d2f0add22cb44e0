"""The generated pages of the documentation; a test says when one is stale."""

from __future__ import annotations

import re
from pathlib import Path

from lrft import catalog, files, methodlist
from lrft import recipe as recipes

BEGIN, END = "<!-- methods: written by scripts/docs -->", "<!-- end -->"


def pages(root: Path) -> dict[Path, str]:
    """Each generated page below the repository `root` and the text that it should have."""
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    marked = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.S)
    return {
        root / "docs" / "recipe.md": recipes.reference(),
        root / "docs" / "methods.md": methodlist.markdown(),
        readme: marked,
    }


def table() -> str:
    """The README's table of methods."""
    rows = [f"| `{c.name}` | {c.kind} | {c.summary} |" for c in catalog.methods().values()]
    return "\n".join(["| method | kind | in one sentence |", "|---|---|---|", *rows])


def main() -> None:
    for path, text in pages(Path(__file__).parents[1]).items():
        files.write_text(path, text)


if __name__ == "__main__":
    main()
