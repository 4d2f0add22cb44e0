"""Tokens that are added: rows that start from the mean, and stay with tokenizer, adapter and merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import tiny_tokenizers
import torch
from peft import PeftModel
from runs import Place
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrft import recipe
from lrft.adapters.storage import read_adapter
from lrft.cli.main import run_command
from lrft.errors import RecipeError
from lrft.loading.from_recipe import load_data
from lrft.loading.saved import load_target
from lrft.model.added_tokens import Added, add_tokens, make_rows, with_rows

NEW = ("model.add_tokens=[<a>, {token: <b>, special: false}]", "adapter.method=lora")
TRAINED = (*NEW, "adapter.train_tokens=added")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place.make(tmp_path_factory.mktemp("place"))
    rows = runs.rows(10)
    for row in rows:
        row["messages"][1]["content"] += " <b>"
    rows[0]["messages"][0]["content"] = "<a>?"
    runs.write_rows(made.root / "train.jsonl", rows)
    return made


@pytest.mark.parametrize("name", tiny.MODELS)
def test_new_rows_are_the_mean_and_the_others_stay(name: str) -> None:
    model = tiny.make(name)
    before = [t.detach().clone() for t in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)]
    plain = tiny.logits(model, tiny.tokens())
    make_rows(model, Added({"<a>": 97, "<b>": 98}))
    for was, now in zip(
        before, (model.get_input_embeddings().weight, model.get_output_embeddings().weight), strict=True
    ):
        assert torch.equal(now[:97], was)
        assert torch.allclose(now[97:], was.mean(0), atol=1e-6)
        assert torch.equal(now, with_rows(was, Added({"<a>": 97, "<b>": 98})))
    found = tiny.logits(model, tiny.tokens())
    assert torch.equal(found[..., :97], plain)
    assert torch.allclose(found[..., 97], plain.mean(-1), atol=1e-5)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (name != "llama")
    assert model.config.vocab_size == 99
    # Rows that are there and belong to no token are taken: nothing is resized, and the mean is that of the tokens.
    padded = tiny.make(name)
    make_rows(padded, Added({"<a>": 90}))
    assert padded.config.vocab_size == 97
    assert torch.allclose(padded.get_input_embeddings().weight[90], before[0][:90].mean(0), atol=1e-6)


def test_what_cannot_be_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"<\|im_end\|> is a token already \(id \d+\): remove it"):
        add_tokens(tiny_tokenizers.chatml(), [("<|im_end|>", True)])
    with pytest.raises(ValueError, match=r"<x> would be split by this tokenizer: 'a<x>a' gives 'a', '<x>a'"):
        add_tokens(tiny_tokenizers.chatml(), [("<x>", True), ("<x>a", True)])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.add_tokens=[' a']", "expected a text without white space at its ends; got the text ' a'"),
        ("model.add_tokens=[<a>, <a>]", "model.add_tokens: <a> is listed twice"),
        ("model.add_tokens=[{token: <a>, specail: true}]", "specail is not a key. Did you mean special"),
        ("adapter.train_tokens=added", "added means the tokens of model.add_tokens, and there are none"),
        ("adapter.train_tokens=[a, a]", "a is listed twice"),
        ("adapter.train_tokens_in=both", "adapter.train_tokens_in has no effect: adapter.train_tokens names no token"),
        ("adapter.untie=true", "adapter.untie has no effect: adapter.modules_to_save trains no module"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(override: str, said: str, place: Place) -> None:
    with pytest.raises(RecipeError) as caught:
        place.recipe("adapter.method=lora", override)
    assert said in str(caught.value)


def test_a_resolved_recipe_is_read_again(place: Place, tmp_path: Path) -> None:
    (tmp_path / "resolved.yaml").write_text(recipe.resolved(place.recipe("adapter.method=lora")))
    assert recipe.load(tmp_path / "resolved.yaml").adapter.train_tokens_in == "embedding"


def test_sharded_bases_are_refused(place: Place) -> None:
    with pytest.raises(RecipeError) as caught:
        place.recipe("adapter.method=lora", "adapter.norms=true", "distributed.strategy=fsdp")
    assert "adapter.norms does not go with distributed.strategy: fsdp" in str(caught.value)


def test_the_text_of_a_special_one_is_characters_in_a_row(place: Place) -> None:
    wanted = place.recipe(*NEW)
    tokenizer, prepared = load_data(wanted, place.root / "base")
    a, b = tokenizer.convert_tokens_to_ids(["<a>", "<b>"])
    rows = [prepared.train.tokens(i).tolist() for i in range(len(prepared.train))]
    assert all(row.count(b) == 1 and a not in row for row in rows)
    assert tokenizer.decode([a, b], skip_special_tokens=True) == "<b>"


@pytest.mark.parametrize(("tied", "where"), [(False, "embedding"), (False, "both"), (True, "embedding")])
def test_they_survive_resuming_merging_and_reloading(tied: bool, where: str, tmp_path: Path, place: Place) -> None:
    """Trust 28."""
    here, name, more = place, f"{tied}-{where}", () if where == "embedding" else (f"adapter.train_tokens_in={where}",)
    if tied:
        here = Place.make(tmp_path / "tied")
        tokenizer = tiny_tokenizers.chatml()
        torch.manual_seed(0)
        tiny.save(tiny.llama(vocabulary=len(tokenizer), tied=True), here.root / "base")
        (here.root / "train.jsonl").write_text((place.root / "train.jsonl").read_text())
    words = (*TRAINED, *more, "adapter.norms=true", "checkpoint.every=1")
    run = here.train(*words, out=name)
    cut = runs.cut(run, 3, here.root / f"again-{name}")
    here.train(*words, out=f"again-{name}", resume="last")
    assert runs.differing(runs.tensors(run), runs.tensors(cut)) == []
    facts = json.loads((run / "run.json").read_text())
    assert facts["model"]["added_tokens"].keys() == {"<a>", "<b>"}
    assert any("in lm_head stay the mean" in text for text in facts["warnings"]) == (not tied and where != "both")
    assert run_command(["merge", str(run)]) == 0
    target = load_target(str(run), None, False)
    ids = torch.tensor([target.tokenizer("<a>what<b> time")["input_ids"]])
    new = sorted(facts["model"]["added_tokens"].values())
    assert set(new) <= set(ids[0].tolist())
    expected = tiny.logits(target.model, ids)
    merged = AutoModelForCausalLM.from_pretrained(run / "merged")
    assert torch.equal(
        torch.tensor([AutoTokenizer.from_pretrained(run / "merged")("<a>what<b> time")["input_ids"]]), ids
    )
    assert torch.allclose(tiny.logits(merged, ids), expected, atol=1e-5)
    assert merged.config.tie_word_embeddings == tied
    # Stock PEFT: the base makes room, the folder brings the rows.
    base = AutoModelForCausalLM.from_pretrained(here.root / "base")
    base.resize_token_embeddings(len(target.tokenizer))
    adapter = (run / "last").resolve()
    assert torch.allclose(tiny.logits(PeftModel.from_pretrained(base, adapter).eval(), ids), expected, atol=1e-5)
    saved = read_adapter(adapter)
    places = ["model.embed_tokens", "lm_head"] if where == "both" else ["model.embed_tokens"]
    assert saved.beside.rows == dict.fromkeys(places, tuple(new))
    start = saved.tensors["model.embed_tokens"]["rows"]
    assert not torch.allclose(start[0], start[1])  # from one row they have parted


def test_an_adapter_is_started_from_with_the_same_tokens(place: Place) -> None:
    run = place.train(*TRAINED, "training.max_steps=1", out="first")
    with pytest.raises(RecipeError) as caught:
        place.train("adapter.method=lora", f"adapter.start_from={run}", out="other")
    assert "was trained with other new tokens (<a>, <b>): give model.add_tokens the same" in str(caught.value)
    more = place.train(*TRAINED, f"adapter.start_from={run}", "training.max_steps=1", out="more")
    assert "started from the tensors" in json.loads((more / "run.json").read_text())["checks"]["started from"]


def test_plan_and_check_count_them(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = place.write_recipe()
    words = [str(path), *TRAINED, "adapter.norms=true"]
    assert run_command(["check", *words]) == 0
    said = capsys.readouterr().out
    assert "trained: 2 rows of model.embed_tokens" in said
    assert "trained: 5 norms" in said
    run = place.train(*TRAINED, "adapter.norms=true", "training.max_steps=1", out="counted")
    trained: Any = json.loads((run / "run.json").read_text())["adapter"]["trainable parameters"]
    assert run_command(["plan", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))["trained"] == trained


@pytest.mark.all
def test_two_processes_train_what_one_trains(place: Place) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':')\n"
        "import pathlib, runs\n"
        "runs.Place(pathlib.Path(sys.argv[2])).train(*sys.argv[4:], out=sys.argv[3])\n"
    )
    options = (*TRAINED, "adapter.norms=true", "adapter.modules_to_save=[lm_head]")
    one = place.train(*options, out="one")
    runs.side_by_side(code, str(place.root), "two", *options)
    assert runs.distance(runs.tensors(one), runs.tensors(place.root / "two"), "adapter") < 1e-4


def test_a_recipe_is_written_out_and_read_again(place: Place, tmp_path: Path) -> None:
    wanted = place.recipe(*TRAINED, "adapter.biases=adapted", "adapter.modules_to_save=lm_head")
    text = recipe.resolved(wanted) if hasattr(recipe, "resolved") else recipe.dump.resolved(wanted)
    (tmp_path / "again.yaml").write_text(text)
    assert recipe.load(tmp_path / "again.yaml") == wanted
