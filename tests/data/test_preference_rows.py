"""Pairs and judged answers: every layout gives the same sequences; what cannot be used is counted with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
from prepared import answers, check_conservation, lines, section

from lrft import data
from lrft.data.collate import IGNORE_INDEX, collate, sequence_numbers
from lrft.data.preview import render
from lrft.data.suggest import refuse_unfit
from lrft.errors import DataError, RecipeError
from lrft.evaluation.generate import with_prompts

ASK = [{"role": "user", "content": "two?"}]
GOOD, BAD = {"role": "assistant", "content": "yes two"}, {"role": "assistant", "content": "no"}
SHAREGPT = [{"from": "human", "value": "two?"}]
PAIRS: list[dict[str, Any]] = [
    {"prompt": ASK, "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "two?", "chosen": GOOD, "rejected": BAD},
    {"prompt": ASK, "chosen": "yes two", "rejected": "no"},
    {"chosen": [*ASK, GOOD], "rejected": [*ASK, BAD]},
    {"prompt": "two?", "chosen": [*ASK, GOOD], "rejected": [*ASK, BAD]},
    {
        "conversations": SHAREGPT,
        "chosen": {"from": "gpt", "value": "yes two"},
        "rejected": {"from": "gpt", "value": "no"},
    },
]
JUDGED: list[dict[str, Any]] = [
    {"prompt": ASK, "completion": [GOOD], "label": True},
    {"prompt": ASK, "completion": "yes two", "label": "true"},
    {"messages": [*ASK, GOOD], "label": 1},
    {"conversations": [*SHAREGPT, {"from": "gpt", "value": "yes two"}], "label": True},
]


def prepare(tmp_path: Path, *rows: Any, kind: str = "preference", **options: Any) -> data.Prepared:
    places = {"training.objective": "recipe.yaml:9:14"}
    prepared = data.prepare(
        section(lines(tmp_path / "rows.jsonl", *rows), **options),
        tiny_tokenizers.chatml(),
        seed=7,
        limit=None,
        where=lambda key: places.get(key, "default"),
        cache=tmp_path / "cache",
        kind=kind,
    )
    check_conservation(prepared.report)
    return prepared


@pytest.mark.parametrize("row", PAIRS)
def test_every_layout_of_a_pair_gives_the_rows_of_two_conversations(tmp_path: Path, row: dict[str, Any]) -> None:
    prepared, decode = prepare(tmp_path, row), tiny_tokenizers.chatml().decode
    (one, two), source = prepared.train.sequences(0), prepared.report.sources[0]
    assert (source.format, source.decided, source.ignored) == ("preference", "found", {})
    prompt = "<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n"
    for (tokens, trained), answer in ((one, "yes two"), (two, "no")):
        assert decode(tokens).startswith(prompt + answer)
        assert decode(tokens[trained]) == f"{answer}<|im_end|>"
    assert prepared.train.lengths[0] == len(one[0]) + len(two[0])
    assert prepared.train.longest[0] == len(one[0])
    assert (decode(prepared.train.prompt(0)), answers(prepared.train)) == (prompt, ["yes two"])
    assert "tokens per sequence (chosen and rejected)" in "\n".join(prepared.report.lines())


def test_texts_are_put_together_as_they_are(tmp_path: Path) -> None:
    prepared, decode = (
        prepare(tmp_path, {"prompt": "a ", "chosen": "b", "rejected": "c"}),
        tiny_tokenizers.chatml().decode,
    )
    assert [decode(tokens) for tokens, _ in prepared.train.sequences(0)] == ["a b<|im_end|>", "a c<|im_end|>"]


def test_earlier_answers_are_shown_and_not_trained(tmp_path: Path) -> None:
    before, decode = [*ASK, GOOD, {"role": "user", "content": "and?"}], tiny_tokenizers.chatml().decode
    (tokens, trained), _ = prepare(tmp_path, {"chosen": [*before, GOOD], "rejected": [*before, BAD]}).train.sequences(0)
    assert decode(tokens[trained]) == "yes two<|im_end|>"
    assert decode(tokens).count("yes two") == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ASK, "chosen": [GOOD], "rejected": [GOOD]}, "equal answers"),
        ({"chosen": "a", "rejected": "b"}, "missing key"),
        ({"chosen": [*ASK, GOOD], "rejected": [{"role": "user", "content": "x"}, BAD]}, "prompts differ"),
        ({"chosen": [*ASK, GOOD], "rejected": [*ASK, GOOD, *ASK, BAD]}, "prompts differ"),
        ({"prompt": "other", "chosen": [*ASK, GOOD], "rejected": [*ASK, BAD]}, "prompts differ"),
        ({"prompt": ASK, "chosen": ASK, "rejected": [BAD]}, "no assistant turn"),
        ({"prompt": ASK, "chosen": 3, "rejected": [BAD]}, "wrong type"),
        ({"prompt": ASK, "chosen": "", "rejected": "a"}, "empty answer"),
    ],
)
def test_what_is_no_pair_is_refused_or_skipped_with_its_reason(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        prepare(tmp_path, PAIRS[0], row)
    assert prepare(tmp_path, PAIRS[0], row, on_bad_row="skip").report.dropped == {reason: 1}


def test_both_answers_have_to_fit(tmp_path: Path) -> None:
    long = {"prompt": ASK, "chosen": "no", "rejected": "two " * 30}
    with pytest.raises(DataError, match="1 of 2 rows"):
        prepare(tmp_path, PAIRS[0], long, max_length=30)
    assert prepare(tmp_path, PAIRS[0], long, max_length=30, too_long="drop").report.train_rows == 1
    cut = prepare(tmp_path, PAIRS[0], long, max_length=30, too_long="truncate")
    assert (cut.train.longest.max(), cut.report.truncated, cut.train.cut(0), cut.train.cut(1) > 0) == (30, 1, 0, True)
    same = {"prompt": ASK, "chosen": "two " * 30 + "yes", "rejected": "two " * 30 + "no"}
    assert prepare(tmp_path, PAIRS[0], same, max_length=30, too_long="truncate").report.train_rows == 1
    with pytest.raises(RecipeError, match="split is for format text"):
        prepare(tmp_path, PAIRS[0], too_long="split")


@pytest.mark.parametrize("row", JUDGED)
def test_every_layout_of_a_judged_answer_gives_its_label(tmp_path: Path, row: dict[str, Any]) -> None:
    other = {"prompt": ASK, "completion": [BAD], "label": False}
    prepared, decode = prepare(tmp_path, row, other, kind="kto"), tiny_tokenizers.chatml().decode
    assert [prepared.train.numbers("good", i).tolist() for i in range(2)] == [[1.0], [0.0]]
    ((tokens, trained),) = prepared.train.sequences(0)
    assert decode(tokens[trained]) == "yes two<|im_end|>"
    assert prepared.report.labels == {"true": 1, "false": 1}
    assert "there is no other label" in "\n".join(prepare(tmp_path, row, kind="kto").report.lines())
    assert [len(with_prompts(prepared.train.slice([i]))) for i in range(2)] == [1, 0]  # a bad answer is not wanted
    (tmp_path / "validation.jsonl").write_text(json.dumps(other))
    alone = prepare(tmp_path, row, kind="kto", validation=str(tmp_path / "validation.jsonl"))
    assert alone.report.labels == {"true": 1}, "what is trained on has one label"
    with pytest.raises(DataError, match="must be true or false"):
        prepare(tmp_path, {**row, "label": 2}, kind="kto")


def test_what_the_cache_keeps_and_a_slice_takes_is_the_same(tmp_path: Path) -> None:
    rows = [{**row, "id": i} for i, row in enumerate(PAIRS[:4])] + [{"prompt": "a ", "chosen": "b", "rejected": "c"}]
    first, second = prepare(tmp_path, *rows), prepare(tmp_path, *rows)
    assert (first.cached, second.cached, second.report.labels) == (False, True, {})
    sliced = first.train.slice([4, 0]).with_numbers(
        "extra", [first.train.lengths[:1] * 0.5, first.train.lengths[:0] * 0.5]
    )
    sliced.save(tmp_path / "rows.safetensors")
    for found in (sliced, type(sliced).load(tmp_path / "rows.safetensors"), sliced.slice([0, 1])):
        for i, old in ((0, 4), (1, 0)):
            for one, two in zip(found.sequences(i), second.train.sequences(old), strict=True):
                assert [a.tolist() for a in one] == [b.tolist() for b in two]
        assert [found.numbers("extra", i).tolist() for i in range(2)] == [[first.train.lengths[0] / 2], []]
    assert prepare(tmp_path, *JUDGED, kind="kto").key != first.key


def test_pairs_lie_one_after_the_other_in_a_batch(tmp_path: Path) -> None:
    rows = prepare(tmp_path, PAIRS[0], {"prompt": "a ", "chosen": "b", "rejected": "c"}).train
    expected = [tokens.tolist() for i in (1, 0) for tokens, _ in rows.sequences(i)]
    padded, packed = (collate(rows, [1, 0], pad_id=0, form=form) for form in ("padded", "packed"))
    assert [
        ids[: int(mask.sum())].tolist() for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)
    ] == expected
    assert packed["input_ids"][0].tolist() == [token for ids in expected for token in ids]
    numbers = [n for n, ids in enumerate(expected) for _ in ids]
    assert sequence_numbers(packed)[0].tolist() == numbers
    assert sequence_numbers(padded)[padded["attention_mask"].bool()].tolist() == numbers
    firsts = [0, *(n for n in range(1, len(numbers)) if numbers[n] != numbers[n - 1])]
    assert (packed["labels"][0, firsts] == IGNORE_INDEX).all()


def test_a_pair_is_shown_with_both_of_its_answers(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, PAIRS[0])
    shown = render(prepared.train, prepared.report, tiny_tokenizers.chatml(), colour=False).plain
    assert shown.index("chosen\n") < shown.index("[[yes two<|im_end|>]]") < shown.index("rejected\n")
    assert shown.index("rejected\n") < shown.index("[[no<|im_end|>]]")


def test_rows_that_the_objective_does_not_take_are_refused_from_the_first_on(tmp_path: Path) -> None:
    chat = lines(tmp_path / "chat.jsonl", {"messages": [*ASK, GOOD]})

    def where(key: str) -> str:
        return {"training.objective": "recipe.yaml:9:14"}.get(key, "default")

    says = "recipe.yaml:9:14.*takes pairs of a chosen and a rejected answer.*the columns messages are conversations"
    with pytest.raises(RecipeError, match=says):
        refuse_unfit(section(chat), "preference", where)
    refuse_unfit(section(chat), "tokens", where)
    judged = lines(tmp_path / "judged.jsonl", {"prompt": "a", "completion": "b", "label": True})
    with pytest.raises(RecipeError, match=r"label are answers with a label of true or false; .*: kto takes those"):
        refuse_unfit(section(judged), "preference", where)
    with pytest.raises(RecipeError, match="takes pairs"):
        prepare(tmp_path, json.loads(chat.read_text()))
