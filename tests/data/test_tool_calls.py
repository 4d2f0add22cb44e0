"""Conversations with tools and thoughts: given to templates as stock transformers takes them, trained as generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chat_templates
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
from prepared import lines, prepare

from lrft import data, recipe
from lrft.errors import DataError, RecipeError
from lrft.loading.from_recipe import load_recipe_tokenizer
from lrft.recipe import DataEntry, DataSection

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"type": "function", "id": "call12345", "function": {"name": "weather", "arguments": {"city": "Köln <|x|>"}}}
ASK, ANSWER = {"role": "user", "content": "how is it?"}, {"role": "assistant", "content": "It is fine."}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": 'sun "always"'}
WITH_TOOL = [ASK, CALLING, RESULT, ANSWER]
TWICE = [ASK, ANSWER, {"role": "user", "content": "and now?"}, {"role": "assistant", "content": "the same"}]
ARGUMENTS = '{"city": "Köln <|x|>"}'


def read(tmp_path: Path, name: str, row: dict[str, Any], **options: Any) -> tuple[Any, data.Prepared]:
    tokenizer, path = chat_templates.tokenizer(name), lines(tmp_path / "rows.jsonl", row)
    entry = DataEntry(path=str(path), special_tokens=options.pop("special_tokens", "auto"))
    return tokenizer, prepare(tmp_path, entry, tokenizer=tokenizer, **options)


def trained(tokenizer: Any, prepared: data.Prepared) -> list[str]:
    """The text of each trained stretch of the first row."""
    tokens, mask = prepared.train.tokens(0), prepared.train.trained(0)
    edges = [i for i in range(1, len(tokens)) if mask[i] != mask[i - 1]] + [len(tokens)]
    return [tokenizer.decode(tokens[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=False)]


# Turns of one template, and what of them is trained, written out.
CASES: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any], list[str]]] = {
    "qwen3, thoughts": (
        "qwen3",
        [ASK, {**CALLING, "reasoning_content": "look"}, RESULT, {**ANSWER, "thinking": "good"}],
        {},
        [
            f'<think>\nlook\n</think>\n\n<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n'
            "</tool_call><|im_end|>",
            "<think>\ngood\n</think>\n\nIt is fine.<|im_end|>",
        ],
    ),
    "qwen3, no thoughts": ("qwen3", TWICE[:2], {}, ["<think>\n\n</think>\n\nIt is fine.<|im_end|>"]),
    "qwen3, thinking off": (
        "qwen3",
        TWICE[:2],
        {"template_options": {"enable_thinking": False}},
        ["It is fine.<|im_end|>"],
    ),
    "qwen3, last": ("qwen3", TWICE, {"train_on": "last-assistant"}, ["<think>\n\n</think>\n\nthe same<|im_end|>"]),
    "qwen3, earlier turns untrained": (
        "qwen3",
        [ASK, {**ANSWER, "train": False}, *TWICE[2:]],
        {},
        ["<think>\n\n</think>\n\nthe same<|im_end|>"],
    ),
    "llama31": (
        "llama31",
        WITH_TOOL,
        {"template_options": {"day": "1 May"}},
        [f'{{"name": "weather", "parameters": {ARGUMENTS}}}<|eot_id|>', "It is fine.<|eot_id|>"],
    ),
    "mistral": (
        "mistral",
        WITH_TOOL,
        {},
        [f'[TOOL_CALLS][{{"name": "weather", "arguments": {ARGUMENTS}}}]</s>', "It is fine.</s>"],
    ),
    "gemma": ("gemma", TWICE, {}, ["It is fine.<end_of_turn>", "the same<end_of_turn>"]),
    "gpt-oss, last": (
        "gpt-oss",
        [*TWICE[:3], {**TWICE[3], "thinking": "hm"}],
        {"train_on": "last-assistant"},
        [
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>the same<|return|>",
        ],
    ),
    "gpt-oss": (
        "gpt-oss",
        WITH_TOOL,
        {},
        [
            f" to=functions.weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>",
            "<|channel|>final<|message|>It is fine.<|return|>",
        ],
    ),
    "deepseek": ("deepseek", WITH_TOOL, {}, [f"<|call|>weather\n{ARGUMENTS}</s>", "It is fine.</s>"]),
    "marked": (
        "marked",
        WITH_TOOL,
        {},
        [
            f'<tool_call>{{"name": "weather", "arguments": {ARGUMENTS}}}</tool_call><|im_end|>',
            "It is fine.<|im_end|>",
        ],
    ),
}


def stock(tokenizer: Any, name: str, messages: list[dict[str, Any]], options: dict[str, Any], **keys: Any) -> Any:
    """What transformers makes of the conversation by itself."""
    tools = [TOOL] if name != "gemma" else None
    clean = [{k: v for k, v in m.items() if k != "train"} for m in messages]
    if name == "deepseek":  # it joins arguments to text, so they have to be one
        clean = json.loads(json.dumps(clean))
        for call in (c for m in clean for c in m.get("tool_calls", ())):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return tokenizer.apply_chat_template(clean, tools=tools, **options.get("template_options", {}), **keys)


@pytest.mark.parametrize("case", CASES)
def test_rows_are_what_stock_transformers_writes_and_trained_is_what_generation_writes(
    tmp_path: Path, case: str
) -> None:
    name, messages, options, wanted = CASES[case]
    row = {"messages": messages} | ({"tools": [TOOL]} if name != "gemma" else {})
    tokenizer, prepared = read(tmp_path, name, row, **options)
    tokens, mask = prepared.train.tokens(0).tolist(), prepared.train.trained(0)
    assert tokenizer.decode(tokens) == stock(tokenizer, name, messages, options, tokenize=False)
    assert trained(tokenizer, prepared) == wanted
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("train", True)]
    for i in answers[-len(wanted) :]:
        # Generation of each trained turn starts from what stands before its first trained token.
        prompt = stock(tokenizer, name, messages[:i], options, add_generation_prompt=True, return_dict=False)
        kept = {"tools": [TOOL] if name != "gemma" else [], "options": options.get("template_options")}
        before = [{k: v for k, v in m.items() if v is not None} for m in messages[:i]]
        ours = data.encode_prompt(tokenizer, before, **kept).tolist()
        assert tokens[: len(ours)] == ours
        assert (mask[len(ours) - 1], mask[len(ours)]) == (False, True)
        # GPT-2's pattern makes one token of two line ends before an answer that is cut off there.
        assert ours == prompt or (name == "llama31" and tokenizer.decode(ours) == tokenizer.decode(prompt))
    if name == "marked":
        found = stock(tokenizer, name, messages, options, return_assistant_tokens_mask=True, return_dict=True)
        assert (found["input_ids"], found["assistant_masks"]) == (tokens, mask.astype(int).tolist())
    assert prepared.report.altered == 0


@pytest.mark.parametrize(
    ("name", "messages", "options", "says", "hint"),
    [
        ("qwen3", TWICE, {}, r"the answer \(turn 2\) differently once more turns follow: '<think>", "last-assistant"),
        (
            "qwen3",
            TWICE,
            {"template_options": {"enable_thinking": False}},
            r"before the answer \(turn 2\) differently",
            "last-assistant",
        ),
        ("qwen3", [ASK, {**CALLING, "thinking": "x"}, RESULT, *TWICE[1:]], {}, r"\(turn 2\)", "last-assistant"),
        ("mistral", [*TWICE[:3], *WITH_TOOL[1:]], {}, r"\(turn 2\)", "last-assistant"),
        ("gpt-oss", TWICE, {}, r"\(turn 2\).*return", "last-assistant"),
        (
            "gpt-oss",
            [ASK, {**CALLING, "thinking": "x", "train": False}, RESULT, ANSWER],
            {},
            r"generation of turn 4 starts from '<\|channel\|>analysis<\|message\|>x",
            "leave thoughts out of earlier turns",
        ),
        (
            "deepseek",
            [ASK, {**ANSWER, "content": "<think>x</think>y"}],
            {"template_options": {"thinking": True}},
            "generation of turn 2 starts from '<think>",
            "Set data.template_options so that both agree",
        ),
    ],
)
def test_what_would_be_trained_otherwise_than_generated_is_refused(
    tmp_path: Path, name: str, messages: list[dict[str, Any]], options: dict[str, Any], says: str, hint: str
) -> None:
    row = {"messages": messages, "tools": [TOOL]}
    with pytest.raises(DataError, match=says) as caught:
        read(tmp_path, name, row, **options)
    assert hint in str(caught.value.hint)
    if hint == "last-assistant":
        _, prepared = read(tmp_path, name, row, **options, train_on="last-assistant")
        assert len(prepared.train) == 1


# --- layouts ---


def test_the_same_calls_as_people_write_them(tmp_path: Path) -> None:
    text_arguments = {**CALL, "function": {"name": "weather", "arguments": ARGUMENTS}}
    flat = {"name": "weather", "arguments": CALL["function"]["arguments"]}
    bare = {"role": "tool", "content": RESULT["content"]}
    row = {"messages": WITH_TOOL, "tools": [TOOL]}
    layouts: list[dict[str, Any]] = [
        row,
        {**row, "tools": json.dumps([TOOL["function"]])},
        {**row, "messages": [ASK, {**CALLING, "tool_calls": [text_arguments]}, RESULT, ANSWER]},
        {**row, "messages": [ASK, {"role": "assistant", "tool_calls": [text_arguments]}, bare, ANSWER]},
        {**row, "messages": [ASK, {"role": "assistant", "function_call": flat}, {**bare, "role": "function"}, ANSWER]},
        {"tools": [TOOL], "prompt": [ASK, CALLING, RESULT], "completion": [ANSWER]},
        {
            "tools": [TOOL],
            "conversations": [
                {"from": "human", "value": ASK["content"]},
                {"from": "function_call", "value": json.dumps(flat)},
                {"from": "observation", "value": RESULT["content"]},
                {"from": "gpt", "value": ANSWER["content"]},
            ],
        },
    ]
    tokenizer = chat_templates.tokenizer("qwen3")
    options = {"tokenizer": tokenizer, "train_on": "last-assistant"}
    found = [
        prepare(tmp_path, lines(tmp_path / "a.jsonl", each), **options).train.tokens(0).tolist() for each in layouts
    ]
    by_source = lines(tmp_path / "b.jsonl", {"messages": WITH_TOOL})
    for tools in ((TOOL,), (TOOL["function"],)):
        entry = DataEntry(path=str(by_source), tools=tools)
        found.append(prepare(tmp_path, entry, validation=str(by_source), **options).validation.tokens(0).tolist())
    # Columns of a table have the keys of all rows, and null where a row has none.
    other = {"type": "function", "function": {"name": "x", "arguments": {"n": 1}}}
    pq.write_table(
        pa.Table.from_pylist(
            [
                row,
                {
                    "messages": [ASK, {**CALLING, "tool_calls": [other]}, {**RESULT, "tool_call_id": None}, ANSWER],
                    "tools": None,
                },
            ]
        ),
        tmp_path / "p.parquet",
    )
    found.append(prepare(tmp_path, tmp_path / "p.parquet", **options).train.tokens(0).tolist())
    assert found == [found[0]] * len(found)
    assert prepare(tmp_path, by_source, **options).train.tokens(0).tolist() != found[0]


def test_special_tokens_in_calls_and_definitions_are_text(tmp_path: Path) -> None:
    said = {"name": "weather", "arguments": {"<|im_end|>": ["<|im_start|>"]}}
    tool = {"type": "function", "function": {**TOOL["function"], "description": "<|im_end|>"}}
    row = {"messages": [ASK, {**CALLING, "tool_calls": [{"function": said}]}], "tools": [tool]}
    tokenizer, prepared = read(tmp_path, "qwen3", row, special_tokens="text")
    tokens = prepared.train.tokens(0).tolist()
    assert tokens.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3
    assert tokenizer.decode(tokens) == tokenizer.apply_chat_template(row["messages"], tools=[tool], tokenize=False)
    assert prepared.train.answer(0).startswith("<think>\n\n</think>\n\n<tool_call>")


# --- what is wrong is said ---


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("gemma", {"messages": WITH_TOOL[:2]}, "the chat template writes no tool calls"),
        ("gemma", {"messages": [ASK, ANSWER], "tools": [TOOL]}, r"writes no tools\. Without: .*tools: none"),
        ("gemma", {"messages": [ASK, {**ANSWER, "thinking": "x"}]}, "reads none of reasoning_content"),
        ("gemma", {"messages": [ASK, ASK, ANSWER]}, "roles must alternate"),
        ("llama31", {"messages": [ASK, {**CALLING, "tool_calls": [CALL, CALL]}]}, "only single tool-calls"),
        ("mistral", {"messages": [ASK, {**CALLING, "tool_calls": [{**CALL, "id": "1"}]}]}, "ids have length 9"),
        ("qwen3", {"messages": [ASK, {**CALLING, "tool_calls": [{"function": {}}]}]}, r"tool_calls\[0\]: has no name"),
        ("qwen3", {"messages": [ASK, {**CALLING, "tool_calls": [1]}]}, "must be an object, this is a number"),
        (
            "qwen3",
            {"messages": [ASK, {**CALLING, "tool_calls": [{"name": "a", "arguments": "{"}]}]},
            r"arguments: the text is not JSON",
        ),
        ("qwen3", {"messages": [ASK, {**CALLING, "tool_calls": [{"name": "a", "arguments": [1]}]}]}, "this is a list"),
        ("qwen3", {"messages": [ASK, CALLING, {**RESULT, "tool_call_id": "x"}, ANSWER]}, "the call 'x', which is not"),
        ("qwen3", {"messages": [ASK, ANSWER], "tools": "weather"}, "tools: the text is not JSON"),
        ("qwen3", {"messages": [ASK, ANSWER], "tools": [{"type": "function"}]}, r"tools\[0\]: has no name"),
        ("qwen3", {"messages": [ASK, ANSWER], "tools": {"name": "a"}}, "must be a list of tools"),
        ("qwen3", {"messages": [ASK, ANSWER], "tools": ["\ud800"]}, "cannot be written as JSON"),
        ("qwen3", {"prompt": "a", "completion": "b", "tools": [TOOL]}, "only conversations have tools"),
        ("qwen3", {"messages": [{**ASK, "tool_calls": [CALL]}, ANSWER]}, "'tool_calls' is not supported here"),
        ("qwen3", {"messages": [ASK, {**ANSWER, "train": 1}]}, "train 1: an answer is trained"),
        ("qwen3", {"messages": [ASK, {**ANSWER, "train": True, "weight": 0}]}, "contradict each other"),
        ("qwen3", {"messages": [{**ASK, "train": True}, ANSWER]}, "only assistant turns can be trained"),
    ],
)
def test_wrong_calls_are_bad_rows(tmp_path: Path, name: str, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read(tmp_path, name, row)


@pytest.mark.parametrize(
    ("name", "keys", "options", "says"),
    [
        ("gemma", {"tools": (TOOL,)}, {}, r"train\.0\.tools: the chat template writes no tools"),
        ("qwen3", {"tools": ({"type": "function"},)}, {}, r"train\.0\.tools: \[0\]: has no name"),
        ("qwen3", {}, {"template_options": {"enable_thinkin": 1}}, "does not read it. Did you mean enable_thinking"),
        ("gemma", {}, {"template_options": {"documents": []}}, "It reads no such value"),
        ("qwen3", {}, {"template_options": {"tools": []}}, "does not read it"),
    ],
)
def test_keys_that_the_template_cannot_use(
    tmp_path: Path, name: str, keys: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    path = lines(tmp_path / "a.jsonl", {"messages": [ASK, ANSWER]})
    with pytest.raises(RecipeError, match=says):
        prepare(tmp_path, DataEntry(path=str(path), **keys), tokenizer=chat_templates.tokenizer(name), **options)


def test_a_recipe_whose_options_the_template_does_not_read(tmp_path: Path) -> None:
    """The template that is saved sets them itself, and reads them after that: it is asked before."""
    runs.save_base(tmp_path / "base")
    (tmp_path / "r.yaml").write_text("model: base\noutput_dir: out\ndata: {train: a, template_options: {day: x}}\n")
    with pytest.raises(RecipeError, match=r"template_options\.day: the chat template does not read it"):
        load_recipe_tokenizer(recipe.load(tmp_path / "r.yaml"), tmp_path / "base")


def test_tools_and_template_options_in_a_recipe(tmp_path: Path) -> None:
    """As a list, or as JSON text; both are read back from the recipe that is written out."""
    path = lines(tmp_path / "a.jsonl", {"messages": WITH_TOOL})
    listed = "tools: [{name: weather, parameters: {type: object, required: [city]}}]"
    text = "tools: '" + json.dumps([{"name": "weather", "parameters": {"type": "object", "required": ["city"]}}]) + "'"
    found = []
    for tools in (listed, text):
        (tmp_path / "r.yaml").write_text(
            f"model: base\noutput_dir: out\ndata:\n  train: [{{path: {path}, {tools}}}]\n"
            "  template_options: {enable_thinking: false, documents: [{title: a}]}\n"
        )
        made = recipe.load(tmp_path / "r.yaml")
        (tmp_path / "again.yaml").write_text(recipe.resolved(made))
        again = recipe.load(tmp_path / "again.yaml")
        found += [made.data, again.data]
    assert found == [found[0]] * 4
    assert found[0].train[0].tools[0]["parameters"]["required"] == ["city"]
    assert found[0].template_options == {"enable_thinking": False, "documents": [{"title": "a"}]}
    for wrong, says in (("tools: [a]", "each a map"), ("tools: '{'", "the text is not JSON"), ("tools: 3", "got 3")):
        (tmp_path / "r.yaml").write_text(f"model: base\noutput_dir: out\ndata: {{train: [{{path: x, {wrong}}}]}}\n")
        with pytest.raises(RecipeError, match=rf"r\.yaml:3:\d+ data\.train\.0\.tools: .*{says}"):
            recipe.load(tmp_path / "r.yaml")


def test_both_answers_of_a_pair_have_the_tools(tmp_path: Path) -> None:
    chosen, rejected = (
        {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": {"n": n}}]} for n in (1, 2)
    )
    row = {"prompt": [ASK], "chosen": [chosen], "rejected": [rejected], "tools": [TOOL]}
    tokenizer = chat_templates.tokenizer("qwen3")
    section = DataSection(train=(DataEntry(path=str(lines(tmp_path / "a.jsonl", row))),), validation="none")
    options = {"seed": 7, "limit": None, "where": str, "cache": tmp_path / "cache", "kind": "preference"}
    rows = data.prepare(section, tokenizer, **options).train
    for (tokens, _), answer in zip(rows.sequences(0), (chosen, rejected), strict=True):
        calls = [{"type": "function", "function": call} for call in answer["tool_calls"]]
        messages = [ASK, {"role": "assistant", "tool_calls": calls}]
        assert tokenizer.decode(tokens) == tokenizer.apply_chat_template(messages, tools=[TOOL], tokenize=False)


def test_the_saved_template_has_the_options_that_were_trained(tmp_path: Path) -> None:
    """So generation elsewhere starts as the rows do; who gives another value has it."""
    import runs

    from lrft.loading.from_recipe import load_recipe_tokenizer

    place = runs.Place.make(tmp_path)
    (tmp_path / "own.jinja").write_text("\n" + chat_templates.QWEN3)
    keys = (f"data.chat_template={tmp_path}/own.jinja", "data.template_options={enable_thinking: false}")
    made = load_recipe_tokenizer(place.recipe(*keys), tmp_path / "base")
    plain = load_recipe_tokenizer(place.recipe(keys[0]), tmp_path / "base")

    def prompt(tokenizer: Any, **values: Any) -> str:
        return tokenizer.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True, **values)

    assert prompt(made) == prompt(plain, enable_thinking=False) != prompt(plain)
    assert prompt(made, enable_thinking=True) == prompt(plain)
    odd = data.with_options("{{ a[0]['b'] }}{{ c }}", {"a": [{"b": "it's \n ü"}], "c": None})
    assert made.apply_chat_template([ASK], chat_template=odd, tokenize=False) == "it's \n üNone"
