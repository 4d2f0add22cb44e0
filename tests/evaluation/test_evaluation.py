"""Loss against stock transformers, generation of a batch against each prompt alone, exact match, no side effects."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_tokenizers
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

from lrft.data import Row, Rows
from lrft.evaluation.generate import answer_rows, generate, pad_token, room_note, stop_tokens, until_stop, with_prompts
from lrft.evaluation.loss import loss_of
from lrft.model.modes import evaluation_mode
from lrft.model.packed_attention import use_rowwise
from lrft.objectives.packing import Layout
from lrft.objectives.sft import TokenLoss


def row(tokens: list[int], trained_from: int, answer: str = "", prompt_end: int | None = None) -> Row:
    mask = np.arange(len(tokens)) >= trained_from
    end = trained_from if prompt_end is None else prompt_end
    return Row(np.array(tokens, dtype=np.int32), mask, end, answer, "t.jsonl:", 1)


def ragged(n: int = 13) -> Rows:
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(n):
        length = 3 + (7 * i) % 23
        tokens = torch.randint(3, tiny.VOCABULARY, (length,), generator=generator).tolist()
        made.append(row(tokens, 1 + i % (length - 1)))
    made.append(row([5, 6, 7], 99))  # nothing trained
    made.append(row([9], 0))  # one token: nothing predicts it
    return Rows.of(made)


def stock_loss(model: PreTrainedModel, rows: Rows) -> tuple[float, int]:
    """transformers' own loss of each row alone, weighted by tokens."""
    total, count = 0.0, 0
    for i in range(len(rows)):
        trained = torch.from_numpy(rows.trained(i).copy())
        n = int(trained[1:].sum())
        if n:
            ids = torch.from_numpy(rows.tokens(i).astype("int64"))[None]
            with torch.no_grad():
                total += model(input_ids=ids, labels=ids.masked_fill(~trained, -100)).loss.item() * n
            count += n
    return total / count, count


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_loss_is_that_of_transformers_weighted_by_tokens_for_every_batch(name: str) -> None:
    model, rows = tiny.make(name), ragged()
    expected, tokens = stock_loss(model, rows)
    use_rowwise(model)
    layouts = [Layout("padded"), Layout("padded", direct=True), Layout("rowwise"), Layout("rowwise", direct=True)]
    for micro, layout in itertools.product((1, 2, 3, 7, 64), layouts):
        found = loss_of(TokenLoss(model, direct=layout.direct), rows, micro=micro, pad_id=2, form=layout.form)
        assert found["loss"] == pytest.approx(expected, rel=1e-6), (micro, layout)
        assert found["tokens"] == tokens
        assert found["perplexity"] == pytest.approx(np.exp(expected), rel=1e-5)


def test_a_mean_of_means_would_be_another_number() -> None:
    """The rows are ragged enough for the test above to see that mistake."""
    model, rows = tiny.make("llama"), ragged()
    means = [loss_of(TokenLoss(model), rows.slice([i]), micro=1, pad_id=2)["loss"] for i in range(13)]
    assert np.mean(means) != pytest.approx(stock_loss(model, rows)[0], rel=1e-4)


@pytest.mark.parametrize("world", [2, 5, 40])
def test_ranks_together_measure_each_row_once(world: int) -> None:
    model, rows = tiny.make("llama"), ragged()
    sums: list[torch.Tensor] = []

    def collect(own: torch.Tensor) -> torch.Tensor:
        sums.append(own.clone())
        return own

    for rank in range(world):
        loss_of(TokenLoss(model), rows, micro=2, pad_id=2, rank=rank, world=world, reduce=collect)
    total, tokens = torch.stack(sums).sum(0).tolist()
    expected, count = stock_loss(model, rows)
    assert tokens == count
    assert total / tokens == pytest.approx(expected, rel=1e-6)


def test_nothing_to_measure_is_not_a_number() -> None:
    found = loss_of(TokenLoss(tiny.make("llama")), Rows.of([row([3, 4], 9)]), micro=1, pad_id=2)
    assert np.isnan(found["loss"])
    assert found["tokens"] == 0


def prompts(n: int = 7) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(3, tiny.VOCABULARY, 1 + (5 * i) % 17).astype(np.int32) for i in range(n)]


def answers(model: nn.Module, batch_size: int, stop: list[int], n: int = 12) -> list[list[int]]:
    return generate(model, prompts(), pad_id=2, stop_ids=stop, max_new_tokens=n, batch_size=batch_size)


def by_hand(model: PreTrainedModel, prompt: np.ndarray, n: int) -> list[int]:
    """Greedy, one token at a time, without cache, padding or `generate`."""
    ids = prompt.tolist()
    for _ in range(n):
        ids.append(int(tiny.logits(model, torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_batch_answers_as_each_prompt_alone(name: str) -> None:
    """Trust 17."""
    model = tiny.make(name)
    expected = [by_hand(model, prompt, 12) for prompt in prompts()]
    assert len({tuple(answer) for answer in expected}) > 4
    for batch_size in (1, 3, 64):
        assert answers(model, batch_size, []) == expected


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_answers_end_before_the_stop_token(name: str) -> None:
    model = tiny.make(name)
    free = answers(model, 3, [])
    stop = [free[0][4], free[3][7]]
    expected = [a[: min([a.index(s) for s in stop if s in a], default=len(a))] for a in free]
    assert any(len(a) < len(b) for a, b in zip(expected, free, strict=True))
    for batch_size in (1, 3):
        assert answers(model, batch_size, stop) == expected
    assert until_stop([5, 2, 7], [2, 7]) == [5]
    assert until_stop([2], [2]) == []
    assert until_stop([5], []) == [5]


def test_progress_ends_at_all() -> None:
    done: list[int] = []
    generate(
        tiny.make("llama"), prompts(5), pad_id=2, stop_ids=[2], max_new_tokens=1, batch_size=2, progress=done.append
    )
    assert done == [2, 4, 5]


def test_modes_and_random_numbers_are_left_as_they_were() -> None:
    model, rows = tiny.make("llama").train(), ragged()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(8)
    expected = torch.rand(4)
    torch.manual_seed(8)
    loss_of(TokenLoss(model), rows, micro=4, pad_id=2)
    answers(model, 3, [2], n=2)
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(2)
    assert [module.training for module in model.modules()] == modes
    assert {True, False} == set(modes)
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.rand(4), expected)
    assert torch.is_grad_enabled()


def test_dropout_is_off_while_measuring() -> None:
    model, rows = tiny.make("gpt2"), ragged()
    quiet = loss_of(TokenLoss(model), rows, micro=4, pad_id=2)["loss"]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    assert loss_of(TokenLoss(model.train()), rows, micro=4, pad_id=2)["loss"] == quiet


def test_rows_without_a_prompt_are_not_asked() -> None:
    rows = Rows.of([row([1, 5, 6], 1), row([1, 5, 6], 2), row([5, 6, 7], 0), row([1, 4, 5, 6], 3)])
    assert [len(rows.prompt(i)) for i in range(4)] == [1, 2, 0, 3]
    asked = with_prompts(rows)
    assert [asked.tokens(i).tolist() for i in range(len(asked))] == [[1, 5, 6], [1, 4, 5, 6]]


class Parrot(nn.Module):
    """Stands where a model stands and answers what it is told, whatever is asked."""

    def __init__(self, said: dict[int, list[int]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.said = said
        self.config = LlamaConfig()

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, pad_token_id: int, **_: Any) -> torch.Tensor:
        new = [(self.said[int(ids[-1])] + [pad_token_id] * max_new_tokens)[:max_new_tokens] for ids in input_ids]
        return torch.cat([input_ids, torch.tensor(new)], dim=1)


@pytest.mark.parametrize(
    ("said", "expected", "match"),
    [
        ("forty two", "forty two", True),
        (" forty two \n", "forty two", True),  # surrounding white space does not count
        ("forty two", "\nforty two ", True),
        ("Forty two", "forty two", False),  # nothing else is forgiven
        ("forty  two", "forty two", False),
        ("forty two.", "forty two", False),
        ("forty", "forty two", False),
        ("forty two world", "forty two", False),
        ("", "forty two", False),
        ("", "", True),
    ],
)
def test_exact_match(said: str, expected: str, match: bool) -> None:
    tokenizer = tiny_tokenizers.chatml()
    end = tokenizer.eos_token_id
    prompt = tokenizer("hello")["input_ids"] * 2
    model = Parrot({prompt[-1]: [*tokenizer(said)["input_ids"], end, *tokenizer(" and more")["input_ids"]]})
    rows = Rows.of([row([*prompt, 9, end], len(prompt), expected)])
    (found,) = answer_rows(model, tokenizer, rows, max_new_tokens=30, batch_size=2)
    assert found["match"] is match
    assert found["answer"] == said.strip()
    assert found["expected"] == expected.strip()
    assert found["prompt"] == "hellohello"


def test_answers_come_in_the_order_of_the_rows() -> None:
    """Prompts are batched by length; answers must find their way back."""
    tokenizer = tiny_tokenizers.chatml()
    made = [row([9] * (9 - i) + [20 + i, 9], 10 - i, str(i)) for i in range(6)]
    model = Parrot({20 + i: [*tokenizer(str(i))["input_ids"], tokenizer.eos_token_id] for i in range(6)})
    found = answer_rows(model, tokenizer, Rows.of(made), max_new_tokens=4, batch_size=4)
    assert [a["answer"] for a in found] == [str(i) for i in range(6)]
    assert all(a["match"] for a in found)


def test_stop_tokens_are_those_of_tokenizer_and_generation_config() -> None:
    tokenizer = SimpleNamespace(eos_token_id=7)
    for configured, expected in ((None, [7]), (3, [3, 7]), ([9, 7, 1], [1, 7, 9])):
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=configured))
        assert stop_tokens(model, tokenizer) == expected
    assert stop_tokens(SimpleNamespace(), SimpleNamespace(eos_token_id=None)) == []
    assert stop_tokens(SimpleNamespace(), SimpleNamespace(eos_token_id=0)) == [0]


def test_the_pad_token_is_any_and_zero_counts() -> None:
    for pad, end, expected in ((0, 5, 0), (None, 5, 5), (None, None, 0), (4, 5, 4)):
        assert pad_token(SimpleNamespace(pad_token_id=pad, eos_token_id=end)) == expected


def test_answers_end_at_the_last_position_and_a_prompt_near_it_is_answered_as_alone() -> None:
    model, limit, most = tiny.make("gpt2"), 64, 40
    model.config.n_positions = limit  # it has more: what is asked is whether they are kept to
    prompts = [np.arange(3, 3 + n, dtype=np.int32) for n in (60, 5, 30, 64)]
    together = generate(model, prompts, pad_id=0, stop_ids=[], max_new_tokens=most, batch_size=4)
    assert [len(ids) for ids in together] == [4, 40, 34, 1]
    for prompt, ids in zip(prompts, together, strict=True):
        asked = torch.from_numpy(prompt.astype("int64"))[None]
        stock = model.generate(asked, max_new_tokens=len(ids), do_sample=False, pad_token_id=0, eos_token_id=None)
        assert stock[0, len(prompt) :].tolist() == ids
    assert room_note([5, 24], most, limit) == ""
    assert room_note([5, 25, 60], most, limit).startswith("2 of 3 prompts, of up to 60 tokens, leave less than 40 of")
