"""docs/models.md: the page says what its figures say, and the figures are what the families do."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from model_table.families import FAMILIES
from model_table.making import write_rows
from model_table.others import ASIDE, others
from model_table.page import page
from model_table.shrinking import layers_kept, shrunk
from model_table.trying import Tried, attempt, first_line, not_built

ROOT = Path(__file__).parents[2]
KEPT = json.loads((ROOT / "docs" / "models.json").read_text(encoding="utf-8"))
SAME_VERSION = version("transformers") == KEPT["versions"]["transformers"]


def tried(family: str, tmp_path: Path) -> dict[str, Any]:
    return asdict(attempt(family, tmp_path, write_rows(tmp_path / "rows.jsonl")))


def test_the_page_says_what_was_found() -> None:
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == page(KEPT)


@pytest.mark.skipif(not SAME_VERSION, reason="the table is of another version of transformers")
def test_the_table_holds_the_families_that_transformers_offers() -> None:
    """Each with what it does, or with the reason why it was not tried."""
    assert KEPT["families"].keys() == {*FAMILIES, *others()}
    told = [Tried(**one) for one in KEPT["families"].values()]
    assert all(one.not_built or (one.trains and one.forecast) for one in told)
    vague = ("Class validation error", "Traceback")
    assert not [one.family for one in told if any(word in str(asdict(one)) for word in vague)]


def test_a_reason_is_what_a_validator_or_a_missing_package_says() -> None:
    wrapped = ValueError("Class validation error for validator 'validate_architecture':\n    ValueError: too small")
    wrapped.__cause__ = ValueError("too small\nmore")
    assert not_built(wrapped) == "too small"
    asked = (
        "X requires the timm library but it was not found in your environment. You can install it with pip:\npip ..."
    )
    assert not_built(ImportError(asked)) == "X requires the timm library"
    assert first_line("no 'https://hub.co//tmp/a/base/tree/main', /tmp/a/base/x") == "no 'the folder', the folder/x"


def test_families_set_aside_are_offered() -> None:
    assert ASIDE.keys() <= set(others())


def test_one_family_does_what_the_table_says(tmp_path: Path) -> None:
    assert tried("Qwen 3", tmp_path) == KEPT["families"]["Qwen 3"]


@pytest.mark.all
@pytest.mark.skipif(not SAME_VERSION, reason="the table is of another version of transformers")
@pytest.mark.filterwarnings("default")  # of the families' own code
@pytest.mark.parametrize("family", KEPT["families"])
def test_each_family_does_what_the_table_says(family: str, tmp_path: Path) -> None:
    found, kept = (
        re.sub(r"\d\.\de[+-]\d\d", "a figure", json.dumps(one))
        for one in (tried(family, tmp_path), KEPT["families"][family])
    )
    assert found == kept


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
