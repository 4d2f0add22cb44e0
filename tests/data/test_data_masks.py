"""What is trained, token by token, for templates and tokenizers of each kind."""

from __future__ import annotations

import pytest
import tiny_tokenizers as tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lrft.data import encode_prompt
from lrft.data.records import BadRow
from lrft.data.rendering import Renderer
from lrft.data.sample import Sample
from lrft.data.token_mask import Encoded, Encoder
from lrft.data.turns import Message
from lrft.errors import DataError

SPECIAL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<s>", "</s>"]
# Ordinary text, text of special tokens, the marks themselves, and what templates strip.
CONTENT = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
        st.sampled_from([*SPECIAL, "the answer", " ", "\n", "\ufdd0", "\ufdd1", "\u2028", "🙂"]),
    ),
    max_size=5,
).map("".join)
ANSWER = CONTENT.filter(lambda text: text.strip() != "")


def conversation(*contents: str) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]


def encode(tokenizer, sample: Sample, train_on: str = "assistant") -> Encoded:
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    found = Encoder(tokenizer)([Renderer(tokenizer, template, train_on)(sample)])[0]
    assert isinstance(found, Encoded)
    return found


def read(tokenizer, encoded: Encoded) -> list[str]:
    """The text of each trained stretch, read in its place (alone, some tokenizers strip its first space)."""
    tokens = encoded.tokens.tolist()
    edges = [i for i in range(1, len(tokens)) if encoded.trained[i] != encoded.trained[i - 1]] + [len(tokens)]
    texts = [tokenizer.decode(tokens[:stop], clean_up_tokenization_spaces=False) for stop in edges]
    return [texts[k + 1][len(texts[k]) :] for k in range(0, len(texts) - 1, 2)]


@given(st.lists(st.tuples(CONTENT, ANSWER), min_size=1, max_size=3))
@example([("<|im_end|>", "<|im_end|>")])
@example([("a", ">")])
@example([("", "\n<|im_end|>"), ("", "a")])
@settings(max_examples=120, deadline=None)
def test_trained_tokens_read_as_answer_and_end_token(turns: list[tuple[str, str]]) -> None:
    """Trust 6, 10."""
    tokenizer = tiny.chatml()
    messages = conversation(*(text for turn in turns for text in turn))
    encoded = encode(tokenizer, Sample(messages=tuple(messages)))
    trained = [tokenizer.decode(encoded.tokens[a:b]) for a, b, _ in encoded.spans]
    assert trained == [answer + "<|im_end|>" for _, answer in turns]
    assert sum(b - a for a, b, _ in encoded.spans) == encoded.trained.sum()
    assert all(encoded.tokens[b - 1] == tokenizer.eos_token_id for _, b, _ in encoded.spans)
    # Text typed by a person never becomes a control token, and the rest is as transformers has it.
    ids = tokenizer.apply_chat_template(messages, return_dict=False, sanitize_control_tokens=True)
    if "\ufdd0" not in str(messages):
        control = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>")]
        assert [t for t in encoded.tokens if t in control] == [t for t in ids if t in control]
    # What generation starts from is an exact prefix of the row.
    prompt = encode_prompt(tokenizer, messages[:-1])
    assert encoded.tokens[: encoded.spans[-1][0]].tolist() == prompt.tolist()


@given(CONTENT, ANSWER.filter(lambda text: "▁" not in text))
@settings(max_examples=80, deadline=None)
def test_a_tokenizer_that_puts_spaces_gets_none_at_the_borders(question: str, answer: str) -> None:
    tokenizer = tiny.spaced()
    messages = conversation(question.replace("▁", ""), answer)
    encoded = encode(tokenizer, Sample(messages=tuple(messages)))
    tokens = encoded.tokens.tolist()
    assert tokens[:2].count(tokenizer.bos_token_id) == 1
    assert tokens[-1] == tokenizer.eos_token_id
    assert encoded.trained[-1]
    if not any(token in question + answer for token in SPECIAL):
        whole = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False).input_ids
        assert tokenizer.decode(tokens) == tokenizer.decode(whole)
        # Jinja's trim takes off what str.strip does.
        assert read(tokenizer, encoded) == [f" {answer.strip()} </s>"]


def test_rows_are_what_the_template_gives_without_special_text() -> None:
    """Trust 9."""
    for tokenizer in (tiny.chatml(), tiny.spaced()):
        messages = conversation("What is the question?", "forty two", "Why?", "the answer")
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        assert encode(tokenizer, Sample(messages=tuple(messages))).tokens.tolist() == ids


# GPT-2's pattern makes one token of two line ends at the end of a prompt, and two where an answer follows. Generation
# starts from the prompt alone, so its ids are those that a row has.
READ_OTHERWISE_ALONE = {("byte-level", "llama3"), ("byte-level, prefix space", "llama3")}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_rows_are_the_ids_of_the_template_for_every_kind_of_tokenizer(kind: str) -> None:
    """Trust 9: what a row is trained on is what stock transformers makes of the conversation."""
    tokenizer = tiny.of_kind(kind)
    messages = conversation("What is the question?", "forty two", "Once upon a time", "the answer\nhello")
    for shape, template in tiny.SHAPES.items():
        tokenizer.chat_template = template
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        encoded = encode(tokenizer, Sample(messages=tuple(messages)))
        assert (encoded.tokens.tolist() == ids) == ((kind, shape) not in READ_OTHERWISE_ALONE), shape
        assert tokenizer.decode(encoded.tokens) == tokenizer.decode(ids)
        # Only answers are trained, each with the token that closes it, and generation starts from what stands before.
        alone = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
        assert encoded.tokens[: encoded.spans[0][0]].tolist() == alone
        for (first, last, answer), turns in zip(encoded.spans, (1, 3), strict=True):
            assert encoded.tokens[:first].tolist() == encode_prompt(tokenizer, messages[:turns]).tolist(), shape
            assert tokenizer.convert_ids_to_tokens(int(encoded.tokens[last - 1])) in (*tiny.MARKERS, "</s>", "<|end|>")
            read = tokenizer.decode(encoded.tokens[first : last - 1])
            assert "".join(read.split()) == "".join(answer.split()), shape
        assert sum(last - first for first, last, _ in encoded.spans) == encoded.trained.sum()


def test_the_question_does_not_change_what_is_trained() -> None:
    """Trust 8."""
    tokenizer = tiny.chatml()
    one, two = (encode(tokenizer, Sample(messages=tuple(conversation(q, "forty two")))) for q in ("a", "b, c"))
    assert one.tokens[one.trained].tolist() == two.tokens[two.trained].tolist()


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("assistant", ["one<|im_end|>", "two<|im_end|>"]),
        ("last-assistant", ["two<|im_end|>"]),
    ],
)
def test_train_on(train_on: str, expected: list[str]) -> None:
    tokenizer = tiny.chatml()
    encoded = encode(tokenizer, Sample(messages=tuple(conversation("a", "one", "b", "two"))), train_on)
    assert read(tokenizer, encoded) == expected
    assert encoded.spans[-1][2] == "two"


def test_train_on_all_leaves_out_only_the_first_token() -> None:
    encoded = encode(tiny.chatml(), Sample(messages=tuple(conversation("a", "one"))), "all")
    assert encoded.trained.tolist() == [False] + [True] * (len(encoded.tokens) - 1)


def test_white_space_after_the_end_token_is_not_trained() -> None:
    tokenizer = tiny.chatml()
    encoded = encode(tokenizer, Sample(messages=tuple(conversation("a", "one"))))
    assert tokenizer.decode(encoded.tokens[-1:]) == "\n"
    assert not encoded.trained[-1]


@pytest.mark.parametrize("answer", ["one", "one \n ", " one<|im_end|>"])
def test_eos_is_added_where_the_template_writes_no_end(answer: str) -> None:
    tokenizer = tiny.chatml(tiny.NO_END)
    encoded = encode(tokenizer, Sample(messages=tuple(conversation("a", "first", "b", answer))))
    assert read(tokenizer, encoded) == ["first", answer + "<|im_end|>"]
    assert encoded.tokens[-1] == tokenizer.eos_token_id
    assert encoded.trained[-1]


def test_an_answer_that_ends_in_an_ordinary_added_token() -> None:
    tokenizer = tiny.chatml(tiny.NO_END)
    tokenizer.add_tokens(["</div>"])
    encoded = encode(tokenizer, Sample(messages=tuple(conversation("a", "<div></div>"))))
    assert read(tokenizer, encoded) == ["<div></div><|im_end|>"]
    tokenizer.chat_template = tiny.CHATML.replace("<|im_end|>", "</div>")
    encoded = encode(tokenizer, Sample(messages=tuple(conversation("a", "<div></div>"))))
    assert read(tokenizer, encoded) == ["<div></div></div>"]


def test_cutting_that_changes_the_text_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<eos>": 0, "ab": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
    sample = Renderer(tokenizer, None, "assistant")(Sample(prompt="a", answer="b"))
    with pytest.raises(DataError, match="f:1: splitting the text"):
        Encoder(tokenizer)([sample], ["f:1"])


def test_a_second_end_token_after_the_conversation() -> None:
    tokenizer = tiny.chatml(tiny.TWO_ENDS)
    encoded = encode(tokenizer, Sample(messages=tuple(conversation("a", "one", "b", "two"))))
    assert read(tokenizer, encoded) == ["one<|im_end|>", "two<|im_end|>\n<|endoftext|>"]


def test_a_template_that_rewrites_earlier_answers_is_refused() -> None:
    tokenizer = tiny.chatml(tiny.FORGETS)
    sample = Sample(messages=tuple(conversation("a", "<think>hm</think>one", "b", "two")))
    with pytest.raises(DataError, match="differently once more turns follow") as caught:
        encode(tokenizer, sample)
    assert "last-assistant" in str(caught.value.hint)
    encoded = encode(tokenizer, sample, "last-assistant")
    assert read(tokenizer, encoded) == ["two<|im_end|>"]
    # Generation still works, from the very ids of the row.
    prompt = encode_prompt(tokenizer, sample.messages[:-1])
    assert encoded.tokens[: encoded.spans[-1][0]].tolist() == prompt.tolist()


def test_content_that_the_template_leaves_out_is_noticed() -> None:
    tokenizer = tiny.chatml(tiny.FORGETS)
    render = Renderer(tokenizer, tokenizer.chat_template, "last-assistant")
    assert render(Sample(messages=tuple(conversation("a", "<think>hm</think>one", "b", "two")))).altered
    assert not render(Sample(messages=tuple(conversation("a", "one", "b", "two")))).altered


def test_what_the_template_refuses_is_a_bad_row() -> None:
    tokenizer = tiny.spaced()
    system = {"role": "system", "content": "x"}
    with pytest.raises(BadRow, match="Only user and assistant turns"):
        encode(tokenizer, Sample(messages=(system, *conversation("a", "one"))))


@pytest.mark.parametrize(
    "written", ["m.content.split('<|im_end|>')[0]", "('X' if m.content == '<|im_end|>' else m.content)"]
)
def test_a_template_that_takes_the_text_of_special_tokens_apart(written: str) -> None:
    tokenizer = tiny.chatml(tiny.CHATML.replace("m.content", written))
    messages = conversation("<|im_end|>", "one")
    with pytest.raises(BadRow, match="splits its text"):
        encode(tokenizer, Sample(messages=tuple(messages)))
    with pytest.raises(DataError, match="splits its text"):
        encode_prompt(tokenizer, messages[:1])


def test_tool_turns_need_a_template_with_tools() -> None:
    tokenizer = tiny.chatml()
    turns = (*conversation("a"), {"role": "tool", "content": "7"}, *conversation("b", "one"))
    with pytest.raises(BadRow, match="no tool turns"):
        encode(tokenizer, Sample(messages=turns))
    tokenizer.chat_template += "{# tool turns are written like the others #}"
    assert read(tokenizer, encode(tokenizer, Sample(messages=turns))) == ["one<|im_end|>"]


def test_completion_and_document() -> None:
    tokenizer = tiny.spaced(None)
    encoded = encode(tokenizer, Sample(prompt="the question? </s>", answer=" forty two"))
    assert read(tokenizer, encoded) == [" forty two</s>"]
    assert encoded.tokens.tolist().count(tokenizer.bos_token_id) == 1
    assert encoded.tokens.tolist().count(tokenizer.eos_token_id) == 1
    document = encode(tokenizer, Sample(document="Once upon a time"))
    assert document.tokens.tolist() == [*tokenizer("Once upon a time").input_ids, tokenizer.eos_token_id]
    assert document.trained.tolist() == [False] + [True] * (len(document.tokens) - 1)


def test_a_tokenizer_that_cannot_write_a_special_token_as_text() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
    render, encoder = Renderer(tokenizer, None, "assistant"), Encoder(tokenizer)
    good, bad = encoder([render(Sample(prompt="a ", answer=answer)) for answer in ("a", "a <eos>")])
    assert isinstance(good, Encoded)
    assert isinstance(bad, BadRow)
    assert bad.reason == "special token in the text"


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = tiny.chatml()
    before = tokenizer.backend_tokenizer.to_str()
    encode(tokenizer, Sample(messages=tuple(conversation("<|im_end|>", "one"))))
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = tiny.chatml()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end token"):
        Encoder(tokenizer)
