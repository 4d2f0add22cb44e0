"""docs/performance.json, every measurement; docs/performance.md and .svg, made from it alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from performance import commands, curves, inside, machine, merge, methods, picture, preferences, startup, steps
from performance.processes import ROOT
from performance.tables import count

Section = dict[str, Any]
INTRODUCTION = """\
# Performance

Written by `scripts/bench` from `performance.json`, which holds every measurement; `scripts/bench page` regenerates it.
Within a section the systems were measured alternately on the same machine. Figures are medians (min..max). CPU seconds
are summed over all threads; they are the most reliable figure when other work runs on the machine.
"""
CHANGED = "**Not one lrft:** its files were changed while this was measured, or may have been."
# key -> heading and text; `steps` has one key for each model
PAGES: dict[str, tuple[str, Callable[[Section], str]]] = {
    "steps": ("A training step", steps.page),
    "curves": ("The same losses", curves.page),
    "methods": ("Methods", methods.page),
    "preferences": ("Preference pairs", preferences.page),
    "kernels": ("Fast paths", inside.kernels_page),
    "startup": ("Start", startup.page),
    "commands": ("Commands", commands.page),
    "merge": ("Merging", merge.page),
    "starts": ("PiSSA's start", inside.starts_page),
}


def read(folder: Path) -> dict[str, Section]:
    path = folder / "performance.json"
    return json.loads(path.read_text()) if path.exists() else {}


def keep(folder: Path, key: str, section: Section) -> None:
    """Put a section in place of the earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = {**read(folder), key: section | {"sources_after": machine.sources(ROOT)}}
    (folder / "performance.json").write_text(json.dumps(sections, indent=None, separators=(",", ":")) + "\n")


def write(folder: Path) -> Path:
    """The page and its picture."""
    sections = read(folder)
    drawn = [section for key, section in sorted(sections.items()) if key.startswith("steps") and section["runs"]]
    parts = [INTRODUCTION]
    if drawn:
        picture.draw(drawn, folder / "performance.svg")
        parts.append("![tokens per second and memory by system](performance.svg)\n")
    for kind, (heading, text) in PAGES.items():
        for key, section in sorted(sections.items()):
            if key.partition(":")[0] == kind:
                model = f": {section['model']}" if ":" in key else ""
                parts.append(f"## {heading}{model}\n\n{text(section)}\n\n{origin(section)}\n")
    page = folder / "performance.md"
    page.write_text("\n".join(parts))
    return page


def origin(section: Section) -> str:
    """Where the section's figures come from."""
    peers = f"; peers: {machine.words(section['peers'])}" if section.get("peers") else ""
    where = f"{machine.sentence(section['machine'])}, {count(section['threads'], 'thread')}"
    ours = f"lrft at {section['lrft']} with {machine.words(section['versions'])}"
    found = f"<sub>{where}; {ours}{peers}; seed {section['seed']}</sub>"
    return found if same_sources(section) else f"{CHANGED}\n\n{found}"


def same_sources(section: Section) -> bool:
    """Whether lrft's files are known to have been the same before and after."""
    before = section.get("sources")
    return before is not None and before == section.get("sources_after")
