"""The preference quickstart: its pairs, that its recipe is one, and what its last steps print of two models."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import runs
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrft import recipe
from lrft.quickstart.answers import asked

HERE = Path(__file__).parents[2] / "recipes" / "preferences"


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"preferences_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


orders = script(HERE / "orders.py")


def written(folder: Path, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    orders.write(folder, train=120, test=60, seed=seed)
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "test")
    }


def test_the_same_seed_gives_the_same_pairs(tmp_path: Path) -> None:
    a, b, c = (written(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert a == b != c


def test_what_is_ordered_in_the_test_is_never_trained(tmp_path: Path) -> None:
    rows = written(tmp_path)
    trained, held = (
        {(answer["item"], answer["size"]) for row in rows[name] for answer in [json.loads(row["chosen"])]}
        for name in ("train", "test")
    )
    assert not trained & held
    assert (len(trained), len(held)) == (18, 6)
    assert {item for item, _ in held} <= {item for item, _ in trained}


def test_the_better_answer_says_the_order_and_the_worse_one_does_not(tmp_path: Path) -> None:
    kinds = set()
    for row in [row for part in written(tmp_path).values() for row in part]:
        text, right = row["prompt"][-1]["content"], json.loads(row["chosen"])
        assert list(right) == [key for key in ("item", "size", "count", "with", "table") if key in right]
        said = [right["item"], right["size"], orders.NUMBERS[right["count"] - 1]]
        said += [right["with"]] if "with" in right else []
        said += [f"table {orders.NUMBERS[right['table'] - 1]}"] if "table" in right else []
        assert all(word in text for word in said)
        assert ("with " in text, "table" in text) == ("with" in right, "table" in right)
        try:
            wrong = json.loads(row["rejected"])
        except ValueError:
            kinds.add("talk" if row["chosen"] in row["rejected"] else "prose")
            continue
        kinds.add("wrong")
        assert sum(wrong[key] != right[key] for key in right) == 1
        assert wrong.keys() == right.keys()
    assert kinds == {"prose", "talk", "wrong"}


def test_the_recipe_is_accepted() -> None:
    loaded = recipe.load(HERE / "recipe.yaml")
    assert loaded.training.objective.name == "dpo"
    assert loaded.training.objective.options["reference"] == "cached"


def test_the_likelier_answer_is_that_of_stock_losses(tmp_path: Path) -> None:
    judge, base = script(HERE / "judge.py"), runs.save_base(tmp_path / "base")
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    pairs = [
        {"prompt": [{"role": "user", "content": text}], "chosen": one, "rejected": two}
        for text, one, two in (("2 + 2?", "4", "five of them"), ("3 + 1?", "four", "4"), ("5?", "yes yes", "no"))
    ]
    right = 0
    for pair in pairs:
        losses = []
        for side in judge.SIDES:
            chat = [*pair["prompt"], {"role": "assistant", "content": pair[side]}]
            ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
            ids = ids[:, : ids[0].tolist().index(tokenizer.eos_token_id, -3) + 1]  # a line break may follow the end
            start = len(tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True)["input_ids"])
            labels = ids.clone()
            labels[:, :start] = -100
            losses.append(model(input_ids=ids, labels=labels).loss.item())
            found = judge.likelihood(model, tokenizer, pair["prompt"], pair[side])
            assert found == pytest.approx(-losses[-1], rel=1e-5)
        right += losses[0] < losses[1]
    assert judge.share_right(base, pairs) == pytest.approx(right / len(pairs))


def test_rows_of_both_quickstarts_are_asked_alike() -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert asked({"messages": chat}) == asked({"prompt": chat[:1], "chosen": "b", "rejected": "c"}) == (chat[:1], "b")
