"""Continued pre-training is sft on documents, with other defaults; other rows are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
from runs import Place

from lrft import registry
from lrft.errors import RecipeError
from lrft.recipe import Recipe, resolved

DOCUMENTS = [{"text": "hello world " * n} for n in (3, 40, 7, 12, 30, 5)]
KEYS = ("data.max_length=20", "data.validation=none", "training.max_steps=3")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place.make(tmp_path)
    runs.write_rows(made.root / "train.jsonl", DOCUMENTS)
    return made


def test_documents_are_split_and_trained_as_sft_trains_them(place: Place) -> None:
    run = place.train("training.objective=text", *KEYS, out="text")
    same = place.train("training.objective=sft", "data.too_long=split", *KEYS, out="sft")
    assert runs.differing(runs.tensors(run), runs.tensors(same)) == []
    assert runs.records(run) == runs.records(same)
    log = (run / "log.txt").read_text()
    assert "data.too_long is split, the default of text" in log
    assert "packed" in log  # whole documents, end to end
    assert "  too_long: split  # default of text\n" in (run / "resolved.yaml").read_text()


def test_declarations_name_keys_and_options_that_exist() -> None:
    for kind in registry.ROOMS:
        for card in registry.declared(kind).values():
            options = {knob.name for knob in card.knobs}
            assert options >= {*card.models, *card.required, *card.only_with}
            assert options >= {other for other, _ in card.only_with.values()}
            for section, key in (wanted.split(".") for wanted in card.defaults):
                assert key in Recipe.model_fields[section].annotation.model_fields


def test_what_the_recipe_says_comes_first(place: Place) -> None:
    keys = ("training.objective=text", "data.too_long=drop")
    assert "  too_long: drop  # argument 3\n" in resolved(place.recipe(*keys))
    assert "  too_long: error  # default\n" in resolved(place.recipe())


def test_conversations_are_refused(place: Place) -> None:
    runs.write_rows(place.root / "train.jsonl", runs.rows(4))
    with pytest.raises(RecipeError, match=r"default of text data\.too_long: split is for format text; .* is messages"):
        place.train("training.objective=text", out="chat")
