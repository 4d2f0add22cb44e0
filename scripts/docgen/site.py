"""The pages as a site: copied with README and others beside them, links out of the pages made plain, built by mkdocs.

    scripts/docs --site [FOLDER]

A link to a file that is no page of the site (code, tests, recipes) becomes its words: a site has no such file.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Pages that lie beside docs/, with their names in the site.
BESIDE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
KINDS = ("*.md", "*.svg", "*.json")
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")


def gather(folder: Path) -> None:
    """All pages in `folder`, with links among themselves only."""
    for kind in KINDS:
        for file in (ROOT / "docs").glob(kind):
            if file.name != "README.md":  # the index of the folder: the site has its navigation
                shutil.copy(file, folder / file.name)
    for name, there in BESIDE.items():
        shutil.copy(ROOT / name, folder / there)
    for page in folder.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(_LINK.sub(lambda link: kept(link, folder), text), encoding="utf-8")


def kept(link: re.Match[str], folder: Path) -> str:
    """A link as the site has it: to a page, to an address, or only its words."""
    words, target = link[1], link[2]
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    path, _, anchor = target.partition("#")
    name = Path(path).name
    name = BESIDE.get(name, name) if path in (name, f"../{name}", f"docs/{name}") else path
    if name == "README.md" or not (folder / name).is_file():
        return words
    return f"[{words}]({name}{'#' + anchor if anchor else ''})"


def build(out: Path) -> int:
    """The site in `out`. The exit code of mkdocs: 1 for any broken link."""
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "pages").mkdir()
        gather(Path(made) / "pages")
        shutil.copy(ROOT / "docs" / "site.yml", Path(made) / "mkdocs.yml")
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out.resolve())]
        return subprocess.run(command, cwd=made, check=False).returncode


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else "site")))
