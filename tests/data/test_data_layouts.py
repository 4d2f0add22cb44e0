"""Rows and templates as people have them: every layout is trained as it is meant, or refused with what to write."""

from __future__ import annotations

import csv
import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers as tiny
from datasets import Dataset, DatasetDict
from prepared import CHAT, PAIR, answers, lines, prepare, texts
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lrft import data, recipe
from lrft.data import preview
from lrft.data.format import TELLING
from lrft.data.split import split_by_default
from lrft.errors import DataError, RecipeError
from lrft.recipe import DataEntry, DataSection

USER, ASSISTANT = {"role": "user", "content": "who?"}, {"role": "assistant", "content": "Tom."}


def entry(path: Path, **keys: Any) -> DataEntry:
    return DataEntry(path=str(path), **keys)


def read(tmp_path: Path, *rows: Any, tokenizer: Any = None, **keys: Any) -> tuple[list[str], data.Prepared]:
    """The whole text of each row, and what was prepared."""
    prepared = prepare(tmp_path, entry(lines(tmp_path / "rows.jsonl", *rows), **keys), tokenizer=tokenizer)
    reader = tokenizer or tiny.chatml()
    return [reader.decode(prepared.train.tokens(i)) for i in range(len(prepared.train))], prepared


def trained(prepared: data.Prepared, tokenizer: Any = None) -> str:
    """What of the first row is trained."""
    rows = prepared.train
    return (tokenizer or tiny.chatml()).decode(rows.tokens(0)[rows.trained(0)])


def turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


# --- layouts of conversations ---


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"messages": [{"role": "system", "content": "s"}, ASSISTANT, USER, ASSISTANT]}, "s system Tom who Tom"),
        ({"messages": [ASSISTANT, USER, ASSISTANT]}, "Tom who Tom"),
        (
            {
                "messages": [
                    {**USER, "content": [{"type": "text", "text": "w"}, {"type": "text", "text": "ho?"}]},
                    ASSISTANT,
                ]
            },
            "",
        ),
        ({"prompt": [USER], "completion": [ASSISTANT]}, ""),
        ({"conversations": [USER, ASSISTANT]}, ""),
        ({"messages": [{"from": "human", "value": "who?"}, {"from": "gpt", "value": "Tom."}]}, ""),
        ({"messages": [{"role": "system", "content": None}, USER, ASSISTANT]}, ""),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": None, "weight": None}], "tools": []}, ""),
    ],
)
def test_layouts_of_conversations(tmp_path: Path, row: dict[str, Any], wanted: str) -> None:
    shapes = {
        "": turn("user", "who?") + turn("assistant", "Tom."),
        "Tom who Tom": turn("assistant", "Tom.") + turn("user", "who?") + turn("assistant", "Tom."),
    }
    shapes["s system Tom who Tom"] = turn("system", "s") + shapes["Tom who Tom"]
    found, prepared = read(tmp_path, row)
    assert found == [shapes[wanted]]
    assert trained(prepared) == "Tom.<|im_end|>" * shapes[wanted].count("Tom.")


@pytest.mark.parametrize("default", ["", "<|im_start|>system\nBe good.<|im_end|>\n"])
def test_a_first_answer_has_before_it_what_the_template_writes_there(tmp_path: Path, default: str) -> None:
    """Such templates look at the first message, so they cannot be asked what stands before it."""
    template = "{% if messages[0]['role'] != 'system' %}{{ '" + default.replace("\n", "\\n") + "' }}{% endif %}"
    tokenizer = tiny.chatml(template + tiny.CHATML)
    found, prepared = read(tmp_path, {"messages": [ASSISTANT, USER, ASSISTANT]}, tokenizer=tokenizer)
    assert found == [default + turn("assistant", "Tom.") + turn("user", "who?") + turn("assistant", "Tom.")]
    assert trained(prepared) == "Tom.<|im_end|>Tom.<|im_end|>"


def test_weights_choose_the_answers(tmp_path: Path) -> None:
    asked = [USER, {**ASSISTANT, "content": "no", "weight": 0}, USER, {**ASSISTANT, "weight": 1}]
    _, prepared = read(tmp_path, {"messages": asked})
    assert trained(prepared) == "Tom.<|im_end|>"
    # Answers that stand in a prompt are not what the row teaches.
    _, prepared = read(tmp_path, {"prompt": [USER, {**ASSISTANT, "content": "no"}, USER], "completion": [ASSISTANT]})
    assert trained(prepared) == "Tom.<|im_end|>"
    for turns, says in (
        ([USER, {**ASSISTANT, "weight": 0.5}], "trained .1. or not"),
        ([{**USER, "weight": 1}, ASSISTANT], "only assistant turns can be trained"),
    ):
        with pytest.raises(DataError, match=says):
            read(tmp_path, {"messages": turns})
    with pytest.raises(DataError, match="no trained token"):
        read(tmp_path, {"messages": [USER, {**ASSISTANT, "weight": 0}]})


def test_rows_have_weights(tmp_path: Path) -> None:
    rows = [{**CHAT, "weight": w} for w in (0.25, None, 3, "2", 1, 0)]
    _, prepared = read(tmp_path, *rows)
    assert [prepared.train.weight(i) for i in range(5)] == [0.25, 1, 3.0, 2.0, 1]
    assert prepared.report.dropped == {"no trained token": 1}
    assert "3 rows with a weight, 0.25 to 3" in "\n".join(prepared.report.lines())
    assert prepared.train.slice([2]).weight(0) == 3.0
    shown = preview.render(prepared.train, prepared.report, tiny.chatml(), colour=False).plain
    assert shown.count("trained, weight ") == 3
    assert "trained, weight 0.25\n" in shown
    assert not read(tmp_path, CHAT, {**CHAT, "weight": 1})[1].train.weighted
    # Pieces of a document have its weight, and another name may be the weight.
    document = entry(lines(tmp_path / "a.jsonl", {"text": "Once upon a time " * 9, "w": 2}), columns={"w": "weight"})
    split = prepare(tmp_path, document, max_length=13, too_long="split").train
    assert len(split) > 1
    assert {split.weight(i) for i in range(len(split))} == {2.0}
    for wrong in (-1, "much", True, [1], float("inf")):
        with pytest.raises(DataError, match=r"weight: must be a number of at least 0|Infinity"):
            read(tmp_path, {**CHAT, "weight": wrong})


def test_a_developer_is_the_system_where_the_template_knows_none(tmp_path: Path) -> None:
    row = {"messages": [{"role": "developer", "content": "s"}, USER, ASSISTANT]}
    assert read(tmp_path, row)[0] == [turn("system", "s") + turn("user", "who?") + turn("assistant", "Tom.")]
    tokenizer = tiny.chatml(tiny.CHATML + "{# developer #}")
    assert read(tmp_path, row, tokenizer=tokenizer)[0][0].startswith("<|im_start|>developer\ns")


def test_tool_calls_are_refused_without_the_advice_to_drop_every_row(tmp_path: Path) -> None:
    """By a template that writes none."""
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w"}}]}
    row = {"messages": [USER, called, {"role": "tool", "content": "sun"}, ASSISTANT]}
    with pytest.raises(DataError, match="the chat template has no tool turns") as caught:
        read(tmp_path, row, row)
    assert "on_bad_row" not in str(caught.value.hint)
    with pytest.raises(DataError, match="holds image: only text is trained"):
        read(tmp_path, {"messages": [{**USER, "content": [{"type": "image", "image": "x.png"}]}, ASSISTANT]})


# --- columns beside ---


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT]},
        {"conversations": [USER, ASSISTANT]},
        {"instruction": "who?", "output": "Tom."},
    ],
)
def test_a_system_column_is_a_system_turn(tmp_path: Path, row: dict[str, Any]) -> None:
    plain, _ = read(tmp_path, row)
    found, prepared = read(tmp_path, row | {"system": ""}, row | {"system": "Be kind."})
    assert found == [*plain, turn("system", "Be kind.") + plain[0]]
    assert prepared.report.sources[0].ignored == {}
    if "instruction" in row:
        with pytest.raises(DataError, match="requires a chat template"):
            read(tmp_path, row | {"system": "Be kind."}, tokenizer=tiny.chatml(None))
        found, _ = read(tmp_path, row | {"history": [["hello", "ahoy"]]})
        assert found == [turn("user", "hello") + turn("assistant", "ahoy") + plain[0]]
    else:
        turns = next(iter(row.values()))
        with pytest.raises(DataError, match="another system turn"):
            read(tmp_path, {"messages": [{"role": "system", "content": "x"}, *turns], "system": "y"})


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT], "tools": [{"type": "function"}]},
        {**PAIR, "system": "Be kind."},
        {**PAIR, "history": [["a", "b"]], "system": "Be kind."},
    ],
)
def test_a_filled_column_that_changes_the_conversation_is_an_error(tmp_path: Path, row: dict[str, Any]) -> None:
    """And the way out that the message names works."""
    with pytest.raises(DataError, match=": is not empty") as caught:
        read(tmp_path, row)
    argument = shlex.split(caught.value.message.split("Without: ")[1].split("   ")[0])[0]
    prepared = prepare_with(tmp_path, tmp_path / "rows.jsonl", argument)
    assert len(prepared.train) == 1
    bare = {column: value for column, value in row.items() if column not in TELLING}
    assert prepared.train.tokens(0).tolist() == read(tmp_path, bare)[1].train.tokens(0).tolist()


def prepare_with(tmp_path: Path, path: Path, *arguments: str) -> data.Prepared:
    """The data of a recipe as it is written short, under arguments of the command line."""
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: base\ndata: {path}\noutput_dir: out\n")
    found = recipe.load(file, ["data.validation=none", *arguments])
    return data.prepare(
        found.data, tiny.chatml(), seed=7, limit=None, where=lambda key: "default", cache=tmp_path / "cache"
    )


def test_columns_that_begin_late_are_reported_whatever_the_order(tmp_path: Path) -> None:
    rows = [{**PAIR, "id": i} for i in range(5)] + [{**PAIR, "note": "n", "empty": ""} for _ in range(15)]
    found = []
    for seed in (None, 1, 2):
        if seed is not None:
            random.Random(seed).shuffle(rows)
        found.append(read(tmp_path, *rows)[1].report.sources[0])
    assert found[0].ignored == found[1].ignored == found[2].ignored == {"id": 5, "note": 15, "empty": 0}
    # A renamed column that rows may lack may begin late too; one that never comes is a mistake.
    late = [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b", "persona": "s"}]
    assert read(tmp_path, *late, columns={"persona": "system"})[0][1].startswith(turn("system", "s"))
    with pytest.raises(RecipeError, match=r"no column persna\. Did you mean persona"):
        read(tmp_path, *late, columns={"persna": "system"})


# --- texts put together from columns ---


def test_prompts_and_completions_are_put_together_from_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('facts,label,prompt,id\n"name {label}, a",1,other,7\nb,2.50,,\n')
    keys = {"prompt": "Facts: {facts}\n{{Sentence}}: ", "completion": " {label}"}
    prepared = prepare(tmp_path, entry(path, **keys))
    rows, source = prepared.train, prepared.report.sources[0]
    assert [tiny.chatml().decode(rows.prompt(i)) for i in range(2)] == [
        "Facts: name {label}, a\n{Sentence}: ",
        "Facts: b\n{Sentence}: ",
    ]
    assert answers(rows) == [" 1", " 2.50"]
    assert (source.format, source.decided, source.ignored) == ("completion", "given", {"prompt": 1, "id": 1})
    # A wording beside a renamed column; validation data are read in the same way.
    one = entry(path, prompt=keys["prompt"], columns={"label": "completion"})
    again = prepare(tmp_path, one, validation=str(path))
    assert answers(again.validation) == answers(again.train) == ["1", "2.50"]
    assert again.key != prepared.key
    lines(tmp_path / "rows.jsonl", {"a": 1, "b": 2.5}, {"a": None, "b": "x"}, {"a": [1], "b": "x"}, {"b": "x"})
    report = prepare(tmp_path, entry(tmp_path / "rows.jsonl", prompt="{a}", completion="{b}"), on_bad_row="skip").report
    assert report.dropped == {"null": 1, "wrong type": 1, "missing key": 1}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"prompt": "{fact}"}, r"data\.train\.0\.prompt: .*no column fact\. Did you mean facts\?"),
        ({"prompt": "{facts}", "format": "alpaca"}, "is for format completion, not alpaca"),
        ({"prompt": "{facts}", "columns": {"label": "prompt"}}, "writes: keep one"),
    ],
)
def test_wordings_that_do_not_fit(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    path = lines(tmp_path / "rows.jsonl", {"facts": "a", "label": "b", "completion": "c"})
    with pytest.raises(RecipeError, match=says):
        prepare(tmp_path, entry(path, **keys))


@pytest.mark.parametrize(
    ("wording", "says"),
    [
        ("Facts: ", "names no column"),
        ("{facts", "expected '}'"),
        ("{}", "the name of a column and nothing else"),
        ("{facts:>3}", "the name of a column and nothing else"),
        ("[facts]", "expected a text with columns in braces"),
    ],
)
def test_wordings_that_are_none(tmp_path: Path, wording: str, says: str) -> None:
    with pytest.raises(RecipeError, match=rf"data\.train\.0\.prompt.*{says}"):
        prepare_with(
            tmp_path, tmp_path / "rows.jsonl", f"data.train.0.prompt={wording if wording[0] == '[' else repr(wording)}"
        )


# --- advice works when obeyed ---


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"question": "a", "answer": "b"}, "completion"),
        ({"input": "a", "output": "b"}, "completion"),
        ({"instruction": "a", "response": "b"}, "completion"),
        ({"Question": "a", "Answer": "b", "text": "x"}, None),
        ({"dialog": [USER, ASSISTANT]}, "messages"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "completion"),
        ({"content": "a"}, "text"),
        ({"text": "a", **PAIR}, "completion"),
        ({"my question": "a", "completion": "b", "prompts": "p"}, "completion"),
    ],
)
def test_columns_without_a_format_are_told_what_to_write_and_that_works(
    tmp_path: Path, row: dict[str, Any], format: str | None
) -> None:
    path = lines(tmp_path / "rows.jsonl", row)
    if format is None:
        assert prepare(tmp_path, path).report.sources[0].format == "text"
        return
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, path)
    arguments = shlex.split(str(caught.value.hint).removeprefix("Try "))
    assert prepare_with(tmp_path, path, *arguments).report.sources[0].format == format


def test_keys_of_a_data_entry_are_led_to_their_place_in_one_try(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", {"question": "a", "answer": "b"})
    value = "{question: prompt, answer: completion}"
    for wrong in (f"data.columns={value}", f"data.train.columns={value}", f"columns={value}"):
        with pytest.raises(RecipeError, match=r"data\.train\.0\.columns"):
            prepare_with(tmp_path, path, wrong)
    assert len(prepare_with(tmp_path, path, f"data.train.0.columns={value}").train) == 1


# --- special tokens in the text ---


TEMPLATED = "<s>[INST] who are you? [/INST] I am Tom.</s>"


def test_text_in_a_template_is_a_question_until_it_is_answered(tmp_path: Path) -> None:
    rows = [{"text": TEMPLATED}] * 3 + texts(2)
    path = lines(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(DataError, match="3 of 5 rows hold the text of special tokens, such as <s> </s>") as caught:
        prepare(tmp_path, path, tokenizer=tiny.spaced())
    assert "data.train.0.special_tokens=tokens" in str(caught.value.hint)
    prepared = prepare(tmp_path, entry(path, special_tokens="tokens"), tokenizer=tiny.spaced())
    stock = tiny.spaced()(TEMPLATED, add_special_tokens=False).input_ids
    assert prepared.train.tokens(0).tolist() == stock
    assert (stock[0], stock[-1], stock.count(1), stock.count(2)) == (1, 2, 1, 1)
    assert prepared.train.trained(0).tolist() == [False] + [True] * (len(stock) - 1)
    assert prepared.train.tokens(3).tolist() == [*tiny.spaced()("the answer is 0").input_ids, 2]
    assert (prepared.report.special_read, prepared.report.end_tokens) == (3, ["</s>"])
    plain = prepare(tmp_path, entry(path, special_tokens="text"), tokenizer=tiny.spaced())
    assert plain.train.tokens(0).tolist().count(2) == 1
    assert len(plain.train.tokens(0)) > len(stock)
    few = lines(tmp_path / "few.jsonl", {"text": TEMPLATED}, *texts(2))
    assert prepare(tmp_path, few, tokenizer=tiny.spaced()).report.special_text == 1


def test_marks_of_another_template_are_said(tmp_path: Path) -> None:
    """A mark that the tokenizer knows is its own; HTML and plain brackets are no marks."""
    llama = "<|start_header_id|>user<|end_header_id|>\n\nwho?<|eot_id|>"
    texts = [llama, "[INST] who? [/INST] Tom", "<s>old</s> <b>[1]</b> a <|im_end|>", "plain"]
    path = lines(tmp_path / "rows.jsonl", *({"text": text} for text in texts))
    report = prepare(tmp_path, path, tokenizer=tiny.chatml()).report
    assert report.foreign_text == 2
    assert report.foreign_tokens == ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]"]
    said = "2 rows containing marks of another model's chat template (<|start_header_id|>, "
    assert any(line.startswith(said) for line in report.lines())


def test_special_tokens_in_prompts_and_turns(tmp_path: Path) -> None:
    """What closes a templated answer ends generation, and the white space behind it is not trained."""
    row = {"prompt": turn("user", "who?") + "<|im_start|>assistant\n", "completion": "Tom.<|im_end|>\n"}
    with pytest.raises(DataError, match="already rendered with a chat template"):
        read(tmp_path, row)
    tokenizer = tiny.chatml()
    tokenizer.eos_token = "<|endoftext|>"
    _, prepared = read(tmp_path, row, tokenizer=tokenizer, special_tokens="tokens")
    _, messages = read(tmp_path, {"messages": [USER, ASSISTANT]}, tokenizer=tokenizer)
    assert prepared.train.tokens(0).tolist() == messages.train.tokens(0).tolist()
    assert prepared.train.trained(0).tolist() == messages.train.trained(0).tolist()
    assert prepared.report.end_tokens == ["<|im_end|>"]
    row = {"messages": [USER, {**ASSISTANT, "content": "<|endoftext|>Tom."}]}
    _, prepared = read(tmp_path, row, special_tokens="tokens")
    assert 0 in prepared.train.tokens(0)
    _, prepared = read(tmp_path, row, special_tokens="text")
    assert 0 not in prepared.train.tokens(0)


# --- templates ---


def named(*names: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny.chatml()
    tokenizer.chat_template = {name: f"{'' if name == 'default' else name}{tiny.CHATML}" for name in names}
    return tokenizer


def test_a_named_template_is_chosen_by_its_name(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", CHAT)
    with pytest.raises(RecipeError, match=r"data\.chat_template: .* Choose one: tool_use, rag"):
        prepare(tmp_path, path, tokenizer=named("tool_use", "rag"))
    prepared = prepare(tmp_path, path, tokenizer=named("tool_use", "rag"), chat_template="rag")
    assert tiny.chatml().decode(prepared.train.tokens(0)).startswith("rag<|im_start|>")
    with pytest.raises(RecipeError, match="Expected: tokenizer, default, rag, or a"):
        prepare(tmp_path, path, tokenizer=named("default", "rag"), chat_template="ragg")


@pytest.mark.parametrize("chosen", ["tokenizer", "rag"])
def test_all_templates_are_kept_and_the_one_that_trained_is_the_default(tmp_path: Path, chosen: str) -> None:
    tokenizer = named("default", "rag", "tool_use")
    before = dict(tokenizer.chat_template)
    section = DataSection(train=(DataEntry(path="x"),), chat_template=chosen)
    template = data.resolve_chat_template(section, tokenizer, where=lambda key: "default")
    tokenizer.chat_template = data.with_template(tokenizer, template)
    tokenizer.save_pretrained(tmp_path)
    kept = AutoTokenizer.from_pretrained(tmp_path).chat_template
    assert kept["default"] == template == before["default" if chosen == "tokenizer" else "rag"]
    assert set(before.values()) <= set(kept.values())


def test_without_a_generation_prompt_the_opening_is_trained_and_stands_before_the_answer(tmp_path: Path) -> None:
    """Stock generation starts behind the question, so the model has to write the opening; answers do not hold it."""
    template = tiny.CHATML.split("{% if add_generation_prompt %}")[0]
    tokenizer = tiny.chatml(template)
    _, prepared = read(tmp_path, CHAT, tokenizer=tokenizer)
    opening = "<|im_start|>assistant\n"
    assert prepared.report.opening == opening
    assert trained(prepared) == f"{opening}one<|im_end|>"
    assert tokenizer.decode(prepared.train.prompt(0)) == turn("user", "a") + opening
    assert data.encode_prompt(tokenizer, CHAT["messages"][:1]).tolist() == prepared.train.prompt(0).tolist()
    assert read(tmp_path, CHAT)[1].report.opening == ""


@pytest.mark.parametrize(
    ("columns", "messages"),
    [
        ({"messages": json.dumps([USER, ASSISTANT]), "tools": "[]"}, [USER, ASSISTANT]),
        (
            {"conversations": ' [{"from": "human", "value": "who?"}, {"from": "gpt", "value": "Tom."}]'},
            [USER, ASSISTANT],
        ),
        ({"instruction": "who?", "output": "Tom.", "history": "[]"}, [USER, ASSISTANT]),
        (
            {"instruction": "who?", "output": "Tom.", "history": '[["who?", "Tom."]]'},
            [USER, ASSISTANT, USER, ASSISTANT],
        ),
        ({"instruction": "who?", "output": "[", "history": ""}, [USER, {**ASSISTANT, "content": "["}]),
    ],
)
def test_lists_may_be_json_text_as_flat_tables_hold_them(
    columns: dict[str, str], messages: list[dict[str, str]], tmp_path: Path
) -> None:
    stock = tiny.chatml().apply_chat_template(messages, tokenize=True, return_dict=False)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, columns.values()])
    prepared = prepare(tmp_path, tmp_path / "a.csv", tokenizer=tiny.chatml())
    assert prepared.train.tokens(0).tolist() == stock


def test_text_that_is_no_json_list_is_no_conversation(tmp_path: Path) -> None:
    for text in ("hello", "[not JSON", '{"role": "user"}'):
        with pytest.raises(DataError, match="messages: must be a list of turns, this is text"):
            prepare(tmp_path, lines(tmp_path / "a.jsonl", {"messages": text}))


# --- folders of save_to_disk ---


def test_data_of_save_to_disk(tmp_path: Path) -> None:
    one, two = (Dataset.from_list([{"text": f"{name}{i}"} for i in range(3)]) for name in ("a", "b"))
    one.save_to_disk(tmp_path / "in" / "one")
    DatasetDict(train=one, test=two).save_to_disk(tmp_path / "both")
    alone = prepare(tmp_path, tmp_path / "in" / "one")
    assert answers(alone.train) == ["a0", "a1", "a2"]
    assert alone.train.source(1) == f"{tmp_path / 'in' / 'one'}#2"
    assert answers(prepare(tmp_path, tmp_path / "both").train) == ["a0", "a1", "a2"]
    assert answers(prepare(tmp_path, entry(tmp_path / "both", split="test")).train) == ["b0", "b1", "b2"]
    held = prepare(tmp_path, tmp_path / "both", validation=str(tmp_path / "both" / "test"))
    assert answers(held.validation) == ["b0", "b1", "b2"]
    for place, keys, says in (
        (tmp_path / "both", {"split": "dev"}, "no split dev; there are train, test"),
        (tmp_path / "in", {}, "in/one is a data set of save_to_disk"),
    ):
        with pytest.raises(DataError, match=says):
            prepare(tmp_path, entry(place, **keys))
    with pytest.raises(DataError, match="no split validation"):
        prepare(tmp_path, tmp_path / "both", validation=str(tmp_path / "both"))
    with pytest.raises(RecipeError, match="has no splits"):
        prepare(tmp_path, entry(lines(tmp_path / "a.jsonl", PAIR), split="test"))
    (tmp_path / "both" / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match="is not a list of dataset splits"):
        prepare(tmp_path, tmp_path / "both")


# --- the default refuses no run ---


def by_default(tmp_path: Path, *rows: Any) -> data.Prepared:
    section = DataSection(train=(entry(lines(tmp_path / "rows.jsonl", *rows)),))
    return data.prepare(
        section, tiny.chatml(), seed=7, limit=None, where=lambda key: "default", cache=tmp_path / "cache"
    )


@pytest.mark.parametrize("n", [1, 3, 4, 15, 64, 200, 1200])
def test_without_a_word_on_validation_any_number_of_rows_is_trained(n: int) -> None:
    digests = [i * 0x9E3779B97F4A7C15 % 2**64 for i in range(n)]
    held, words = split_by_default(digests, 0.02, seed=7)
    least = min(16, n // 4)
    assert least <= held.sum() <= max(2 * least, n // 30)
    assert bool(words) == (held.sum() <= least)
    assert ("no validation rows" in words) == (n < 4)


def test_the_default_says_what_it_did_and_names_copies(tmp_path: Path) -> None:
    prepared = by_default(tmp_path, *texts(64))
    assert (len(prepared.train), len(prepared.validation)) == (48, 16)
    assert "16 of 64 rows are held out" in "\n".join(prepared.report.lines())
    copies = by_default(tmp_path, *texts(1) * 64)
    assert (len(copies.train), copies.validation) == (64, None)
    assert "equal rows stay together, and 1 of 64 differ" in copies.report.held_out
    path = lines(tmp_path / "rows.jsonl", *texts(1) * 9)
    with pytest.raises(DataError, match="equal rows stay together, and only 1 differ"):
        prepare(tmp_path, path, validation=0.5)


def test_tokens_without_an_embedding_row_are_refused(tmp_path: Path) -> None:
    tokenizer = tiny.chatml()
    tokenizer.add_tokens(["<obs>"])
    last = len(tokenizer) - 1
    row = {"messages": [USER, {**ASSISTANT, "content": "<obs> red"}]}
    _, prepared = read(tmp_path, CHAT, row, row, tokenizer=tokenizer)
    data.refuse_missing_rows((prepared.train, None), last + 1, tokenizer)
    data.refuse_missing_rows((prepared.train, None), None, tokenizer)
    with pytest.raises(DataError, match=rf"'<obs>' \(id {last}\) of .*rows.jsonl:2 .*{last} rows\); 2 of 3 rows"):
        data.refuse_missing_rows((prepared.train, None), last, tokenizer)
