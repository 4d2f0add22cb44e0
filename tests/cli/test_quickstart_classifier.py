"""The classifier's quickstart: its data, and that its recipe is one."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path

from lrft import recipe

HERE = Path(__file__).parents[2] / "recipes" / "classification"
spec = importlib.util.spec_from_file_location("quickstart_messages", HERE / "messages.py")
messages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(messages)


def test_the_rows_are_balanced_repeatable_and_tested_on_other_phrasings(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        messages.write(tmp_path / folder, train=80, test=40, seed=0)
    for name, each in (("train", 10), ("test", 5)):
        one, two = ((tmp_path / folder / f"{name}.jsonl").read_text() for folder in "ab")
        assert one == two
        found = Counter(json.loads(line)["label"] for line in one.splitlines())
        assert found == dict.fromkeys(messages.PHRASINGS, each)
    for label in messages.PHRASINGS:
        assert not set(messages.phrasings(label, False)) & set(messages.phrasings(label, True))


def test_the_recipe_is_accepted() -> None:
    loaded = recipe.load(HERE / "recipe.yaml")
    assert loaded.training.objective.name == "classification"
