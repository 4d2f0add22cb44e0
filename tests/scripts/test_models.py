"""docs/models.md: the page says what its figures say, and the figures are what the families do."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from model_table.families import FAMILIES
from model_table.making import write_rows
from model_table.others import others
from model_table.page import page
from model_table.shrinking import layers_kept, shrunk
from model_table.trying import attempt

ROOT = Path(__file__).parents[2]
KEPT = json.loads((ROOT / "docs" / "models.json").read_text(encoding="utf-8"))
SAME_VERSION = version("transformers") == KEPT["versions"]["transformers"]


def tried(family: str, tmp_path: Path) -> dict[str, Any]:
    return asdict(attempt(family, tmp_path, write_rows(tmp_path / "rows.jsonl")))


def test_the_page_says_what_was_found() -> None:
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == page(KEPT)


@pytest.mark.skipif(not SAME_VERSION, reason="the table is of another version of transformers")
def test_the_table_holds_families_that_transformers_knows() -> None:
    assert KEPT["families"].keys() <= {*FAMILIES, *others()}


def test_one_family_does_what_the_table_says(tmp_path: Path) -> None:
    assert tried("Qwen 3", tmp_path) == KEPT["families"]["Qwen 3"]


@pytest.mark.all
@pytest.mark.skipif(not SAME_VERSION, reason="the table is of another version of transformers")
@pytest.mark.filterwarnings("default")  # of the families' own code
@pytest.mark.parametrize("family", KEPT["families"])
def test_each_family_does_what_the_table_says(family: str, tmp_path: Path) -> None:
    assert tried(family, tmp_path) == KEPT["families"][family]


def test_shrinking_keeps_a_layer_of_each_kind() -> None:
    facts = {
        "num_hidden_layers": 6,
        "layer_types": ["a", "a", "b", "a", "b", "c"],
        "mlp": ["x", "y", "x", "x", "x", "x"],
    }
    assert layers_kept(facts) == [0, 1, 2, 5]
    small = shrunk("qwen3_vl_moe")
    assert small["text_config"]["hidden_size"] == 32
    assert small["text_config"]["vocab_size"] == 512
    assert small["image_token_id"] < 512
