"""The pages as a site: every link of the copied pages leads to one of them, and mkdocs builds them strictly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from docgen import site


def test_links_lead_to_pages_of_the_site_or_are_words(tmp_path: Path) -> None:
    site.gather(tmp_path)
    pages = list(tmp_path.glob("*.md"))
    assert len(pages) > 25
    for page in pages:
        for words, target in re.findall(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            assert re.match(r"[a-z]+:|#", target) or (tmp_path / target.partition("#")[0]).is_file(), (page.name, words)
    text = (tmp_path / "contributing.md").read_text(encoding="utf-8")
    assert "(architecture.md)" in text
    assert "test_layers.py" in text
    assert "tests/test_layers.py)" not in text


def test_the_navigation_names_pages_that_are_there(tmp_path: Path) -> None:
    site.gather(tmp_path)
    settings = yaml.safe_load((site.ROOT / "docs" / "site.yml").read_text(encoding="utf-8"))
    named = re.findall(r"[\w-]+\.md", str(settings["nav"]))
    assert len(named) == len(set(named)) > 20
    assert [name for name in named if not (tmp_path / name).is_file()] == []


@pytest.mark.all
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="needs the extra docs")
    assert site.build(tmp_path / "site") == 0
    assert "lrft quickstart" in (tmp_path / "site" / "start.html").read_text(encoding="utf-8")
