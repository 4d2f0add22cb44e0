"""aLoRA: which tokens it acts on, against stock PEFT, in batches of every form, in generation and in runs."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import runs
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import Place
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

import lrft
from lrft.adapters.peft_import import read_any
from lrft.adapters.storage import save_adapter
from lrft.cli.main import run_command
from lrft.data.dataset import Row, Rows
from lrft.errors import RecipeError, UsageError
from lrft.evaluation.generate import answer_batch
from lrft.export.merge import merge_adapter
from lrft.model.invocation import behind_invocation
from lrft.objectives.packing import find_layout
from lrft.serving.shelf import load_shelf

INVOCATION = [7, 5]
WORDS = {"alora": {"invocation_tokens": INVOCATION}}
# Invoked twice; not at all; by its last tokens; half an invocation at its end.
ROWS = [
    [3, 7, 5, 9, 11, 7, 5, 20, 21, 22],
    [5, 7, 8, 9, 7, 9],
    [30, 31, 32, 7, 5],
    [40, 7, 5, 41, 42, 43, 7],
]


def adapted(words: Any = WORDS, model_name: str = "llama") -> tuple[Any, Any]:
    model = tiny.make(model_name)
    attached = lrft.attach(model, {"method": words, "rank": 3})
    tiny.disturb(list(attached.trained().values()))
    return model, attached


def in_peft(attached: Any, folder: Path, model_name: str = "llama") -> Any:
    """The same adapter in stock PEFT, by its folder."""
    folder.mkdir()
    save_adapter(attached, folder, base={"name": "base"})
    return peft.PeftModel.from_pretrained(tiny.make(model_name), str(folder), is_trainable=True).eval()


def alone(model: Any, row: list[int]) -> Tensor:
    return tiny.logits(model, torch.tensor([row]))[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=4), st.data())
def test_tokens_behind_the_last_invocation_of_their_own_row(rows: list[list[int]], data: Any) -> None:
    tokens = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
    expected = []
    for row in rows:
        starts = [i for i in range(len(row)) if row[i : i + len(tokens)] == tokens]
        expected += [bool(starts) and i >= starts[-1] for i in range(len(row))]
    ids = torch.tensor([list(chain(*rows))])
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    assert behind_invocation(ids, torch.tensor(tokens), positions)[0].tolist() == expected
    if len(rows) == 1:
        assert behind_invocation(ids, torch.tensor(tokens))[0].tolist() == expected


@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
def test_rows_of_every_form_of_batch_are_answered_as_by_stock_peft(model_name: str, tmp_path: Path) -> None:
    model, attached = adapted(model_name=model_name)
    theirs = in_peft(attached, tmp_path / "adapter", model_name)
    expected = [alone(theirs, row) for row in ROWS]
    with attached.disabled():
        base = [alone(model, row) for row in ROWS]
    assert torch.equal(alone(model, ROWS[1]), base[1])  # not invoked
    for row, found, wanted, untouched in zip(ROWS, [alone(model, row) for row in ROWS], expected, base, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        start = max([i for i in range(len(row)) if row[i : i + 2] == INVOCATION], default=len(row))
        assert torch.equal(found[:start], untouched[:start])
        assert start == len(row) or not torch.allclose(found[start], untouched[start])

    tensors = [torch.tensor(row) for row in ROWS]
    for side in ("right", "left"):  # filled up with what would make an invocation of half of one
        fill = INVOCATION[1] if side == "right" else INVOCATION[0]
        ids = pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side)
        mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True, padding_side=side)
        places = {} if side == "right" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=mask, **places).logits
        for row, kept, wanted in zip(found, mask, expected, strict=True):
            torch.testing.assert_close(row[kept.bool()], wanted, rtol=1e-4, atol=1e-4)


def test_rows_laid_end_to_end_are_answered_as_each_alone() -> None:
    model, _ = adapted()
    # A row that begins with the rest of an invocation, behind one that ends with its beginning.
    rows = [*ROWS, ROWS[1]]
    ids = torch.tensor([list(chain(*rows))])
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    with torch.no_grad():
        found = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0].split(list(map(len, rows)))
    for row, logits in zip(rows, found, strict=True):
        torch.testing.assert_close(logits, alone(model, row), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_stock_peft(tmp_path: Path) -> None:
    model, attached = adapted()
    theirs = in_peft(attached, tmp_path / "adapter")
    ids = torch.tensor([ROWS[0], [9, *ROWS[3], 8, 8]])
    for one in (model, theirs):
        one(input_ids=ids, labels=ids).loss.backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(wanted) == len(attached.trained())
    for name, p in attached.trained().items():
        site, _, word = name.rpartition(".")
        gradient = wanted[f"base_model.model.{site}.lora_{word}.default.weight"]
        assert gradient.abs().max() > 0
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-6)


def test_generation_goes_on_as_the_prompt_was_and_does_not_invoke(tmp_path: Path) -> None:
    """A generated invocation changes nothing: one of a single token that is always the likeliest."""
    model, attached = adapted()
    theirs = in_peft(attached, tmp_path / "adapter")
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": None}
    together = answer_batch(model, [np.array(row) for row in ROWS], pad_id=INVOCATION[0], stop_ids=[], max_new_tokens=6)
    for row, answer in zip(ROWS, together, strict=True):
        prompt = torch.tensor([row])
        expected = theirs.generate(input_ids=prompt, **options)[0, len(row) :].tolist()
        assert answer == expected
        assert model.generate(prompt, **options)[0, len(row) :].tolist() == expected
    first = tiny.logits(tiny.make("llama"), torch.tensor([ROWS[1]]))[0, -1].argmax().item()
    own, _ = adapted({"alora": {"invocation_tokens": [first]}})
    assert first not in ROWS[1]
    plain = tiny.make("llama").generate(torch.tensor([ROWS[1]]), **options)
    assert torch.equal(own.generate(torch.tensor([ROWS[1]]), **options), plain)
    assert first in plain[0, len(ROWS[1]) :]


def test_a_model_without_the_adapter_is_no_longer_watched() -> None:
    model, attached = adapted()
    embedding = model.get_input_embeddings()
    assert len(embedding._forward_pre_hooks) == 1
    attached.detach()
    del attached
    assert not embedding._forward_pre_hooks


def test_it_is_not_merged_and_says_so(tmp_path: Path) -> None:
    _, attached = adapted()
    in_peft(attached, tmp_path / "adapter")
    with pytest.raises(UsageError, match="alora: not mergeable"):
        merge_adapter(
            tmp_path / "adapter", tmp_path / "merged", base_model=str(tiny.save(tiny.make("llama"), tmp_path / "base"))
        )
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ({}, {}, "give invocation or invocation_tokens, it has none"),
        ({"invocation": "a", "invocation_tokens": [3]}, {}, "both name it"),
        ({"invocation": "a"}, {}, "there is no tokenizer"),
        ({"invocation_tokens": [3]}, {"target_modules": ["lm_head"]}, "lm_head does not get each token of a row"),
    ],
)
def test_what_it_cannot_act_on_is_refused(options: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        lrft.attach(tiny.make("llama"), {"method": {"alora": options}, **more})
    assert said in str(caught.value)
    with pytest.raises(RecipeError, match="no language model of transformers"):
        lrft.attach(torch.nn.Sequential(torch.nn.Linear(4, 4)), {"method": WORDS})


INVOKED = "adapter.method={alora: {invocation: '<|im_start|>assistant'}}"


def test_a_run_by_text_saves_tokens_counts_rows_and_is_evaluated_and_served(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place.train(INVOKED, "training.max_steps=3", "evaluation.every=3")
    options = json.loads((run / "last" / "lrft.json").read_text())["methods"][0]["options"]
    tokens = options["invocation_tokens"]
    config = json.loads((run / "last" / "adapter_config.json").read_text())
    assert config["alora_invocation_tokens"] == tokens
    assert len(tokens) > 1
    capsys.readouterr()
    assert run_command(["eval", str(run), "--json", "--no-generate"]) == 0
    loss = json.loads(capsys.readouterr().out)["loss"]
    assert loss == pytest.approx(runs.records(run, "eval")[-1]["loss"], rel=1e-4)
    shelf = load_shelf({"run": str(run)})
    prompt = torch.tensor([[5, 6, *tokens, 9]])
    single = AutoModelForCausalLM.from_pretrained(place.root / "base")
    lrft.load_adapter(single, run / "last")
    answerer = shelf["run"].answerer
    with answerer.placed():
        found = tiny.logits(answerer.model, prompt)
    torch.testing.assert_close(found, tiny.logits(single, prompt))
    assert not torch.allclose(found, tiny.logits(answerer.model, prompt))  # the base again
    read = read_any(run / "last")
    assert read.composition.entries[0]["options"]["invocation_tokens"] == tokens


def test_rows_without_the_invocation_are_counted_and_refused_when_there_are_no_others(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        place.train("adapter.method={alora: {invocation: 'never said'}}", "training.max_steps=1")
    assert "no row of the training data has the invocation" in str(caught.value)
    assert run_command(["check", str(place.root / "recipe.yaml"), "adapter.method={alora: {invocation: 'time'}}"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "rows lack the invocation: the base alone answers them" in said
    assert "trained tokens stand before the last invocation of their row" in said


def test_an_adapter_whose_rows_hold_two_invocations_does_not_pass_for_looking_ahead() -> None:
    """What a token gets depends on later ones here, on purpose."""
    model, _ = adapted()
    rows = Rows.of(
        [
            Row(np.array(row, dtype=np.int32), np.ones(len(row), dtype=bool), 0, "", "rows", i)
            for i, row in enumerate(ROWS)
        ]
    )
    first = rows.tokens(0)
    changed = tiny.logits(model, torch.tensor([[*first[:5], 8, 8, 8, 8, 8]]))[0, 1:5]
    assert not torch.allclose(changed, alone(model, ROWS[0])[1:5])
    assert find_layout(model, rows, packing=True).packed


def test_pairs_do_not_share_their_prompt(place: Place) -> None:
    """An answer that holds an invocation is one before which nothing acts, of its own sequence alone."""
    rows = [row["messages"] for row in runs.rows(8)]
    made = [
        {"prompt": one[:1], "chosen": one[1:], "rejected": other[1:]}
        for one, other in zip(rows[:4], rows[4:], strict=True)
    ]
    for name in ("train", "validation"):
        runs.write_rows(place.root / f"{name}.jsonl", [pair for pair in made if pair["chosen"] != pair["rejected"]])
    for method, shares in ((INVOKED, False), ("adapter.method=lora", True)):
        run = place.train(method, "training.objective=dpo", "training.max_steps=1", out=method[-3:-2])
        said = (run / "report.md").read_text()
        assert ("share their prompt" in said) == shares
