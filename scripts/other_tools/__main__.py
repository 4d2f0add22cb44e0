"""Counts the keys that are carried over from public configurations, and checks each recipe that comes of one.

    scripts/other-tools FOLDER

FOLDER holds clones of the repositories that docs/from-other-tools.json names, each as OWNER/NAME, or bare as
OWNER+NAME/repo. Kept are facts: the repository, the commit, the path, and the numbers of keys.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.page_table import table

from lrft import recipe as recipes
from lrft.moving.convert import move
from lrft.utils import files

DOCS = Path(__file__).parents[2] / "docs"
FACTS, PAGE = DOCS / "from-other-tools.json", DOCS / "from-other-tools.md"
START, END = "<!-- configurations: written by scripts/other-tools -->\n", "<!-- end -->"
# Files that a configuration names its data in.
BESIDE = ("data/dataset_info.json",)


def shown(clones: Path, fact: dict[str, Any], path: str) -> str | None:
    """The text of a file at the fact's commit, or None where there is no such file."""
    owner, name = fact["repository"].split("/")
    bare = clones / f"{owner}+{name}" / "repo"
    folder = bare if bare.is_dir() else clones / owner / name / ".git"
    command = ["git", f"--git-dir={folder}", "show", f"{fact['commit']}:{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def counted(clones: Path, fact: dict[str, Any]) -> dict[str, Any]:
    """The fact with its numbers; the recipe is loaded, as `lrft check --static` does."""
    with tempfile.TemporaryDirectory() as made:
        for path in (fact["path"], *BESIDE):
            text = shown(clones, fact, path)
            if text is not None:
                (Path(made) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(made) / path).write_text(text, encoding="utf-8")
        moved = move(Path(made) / fact["path"])
        recipe = Path(made) / "lrft-recipe.yaml"
        recipe.write_text(moved.text, encoding="utf-8")
        recipes.load(recipe)
    counts = {name: len(getattr(moved, name)) for name in ("carried", "needless", "missing")}
    kept = {key: fact[key] for key in ("repository", "commit", "path")}
    return {**kept, "tool": moved.tool.TITLE, **counts}


def page_table(facts: list[dict[str, Any]]) -> str:
    lines = []
    for fact in facts:
        keys = fact["carried"] + fact["needless"] + fact["missing"]
        share = f"{(fact['carried'] + fact['needless']) / keys:.0%}"
        figures = (keys, fact["carried"], fact["needless"], fact["missing"], share)
        lines.append([fact["tool"], fact["repository"], fact["path"], *map(str, figures)])
    head = ("tool", "repository", "file", "keys", "in the recipe", "needless", "left out", "nothing lost")
    return table(head, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Facts about configurations of other tools.")
    parser.add_argument("clones", type=Path)
    facts = [counted(parser.parse_args().clones, fact) for fact in json.loads(FACTS.read_text(encoding="utf-8"))]
    files.write_text(FACTS, json.dumps(facts, indent=1) + "\n")
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    after = rest.split(END, 1)[1]
    keys = sum(fact["carried"] + fact["needless"] + fact["missing"] for fact in facts)
    kept, missing = sum(fact["carried"] for fact in facts), sum(fact["missing"] for fact in facts)
    said = (
        f"{len(facts)} files, {keys:,} keys: {kept / keys:.0%} have a place in the recipe, {missing / keys:.0%} are "
        "left out, nothing is lost without the others. `lrft check --static` accepts every recipe.\n\n"
    )
    files.write_text(PAGE, f"{before}{START}{said}{page_table(facts)}{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
