"""micro_batch_size: auto finds what fits, changes nothing, and says so when not even one row does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from runs import Place

from lrft import recipe
from lrft.errors import MemoryExhausted
from lrft.loading.pass_size import finds_tokens
from lrft.objectives.sft import TokenLoss
from lrft.planning.activation_memory import keeping, size_of
from lrft.training import find_batch_size
from lrft.training.setup import set_up
from lrft.training.state import Options
from lrft.utils import hardware

AUTO = "training.micro_batch_size=auto"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("fitting"))


def short_of_memory(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[int]:
    """Passes in training of more tokens than that run out of memory. Returns the tokens of all."""
    seen: list[int] = []
    original = TokenLoss.forward

    def forward(self: TokenLoss, batch: Any) -> Any:
        if self.training:
            seen.append(batch["input_ids"].numel())
            if seen[-1] > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
        return original(self, batch)

    monkeypatch.setattr(TokenLoss, "forward", forward)
    return seen


def test_it_takes_a_whole_step_where_there_is_room_and_learns_the_same(place: Place) -> None:
    auto = place.train(AUTO, out="auto")
    given = place.train("training.micro_batch_size=4", out="four")
    assert recipe.load(auto / "resolved.yaml").training.micro_batch_size == 4
    assert runs.differing(runs.tensors(auto), runs.tensors(given)) == []


@pytest.mark.parametrize("method", ["lora", "galore", "ba-lora"])
def test_trying_leaves_no_trace(place: Place, method: str) -> None:
    session = set_up(place.recipe(f"adapter.method={method}", AUTO), Options())
    plain = set_up(place.recipe(f"adapter.method={method}", "training.micro_batch_size=4"), Options())
    for name, tensor in session.adapted.attached.state_dict().items():
        assert torch.equal(tensor, plain.adapted.attached.state_dict()[name]), name
    assert all(p.grad is None for p in session.adapted.attached.trained().values())
    assert not session.engine.optimizer.optimizer.state
    rates = [group["lr"] for group in session.engine.optimizer.optimizer.param_groups]
    assert rates == [group["lr"] for group in plain.engine.optimizer.optimizer.param_groups]


def test_it_halves_until_the_longest_rows_fit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = sorted(set_up(place.recipe(), Options()).inputs.train.lengths.tolist(), reverse=True)
    seen = short_of_memory(monkeypatch, sum(lengths[:2]))
    session = set_up(place.recipe(AUTO), Options())
    assert session.engine.micro == 2
    assert seen[-2:] == [sum(lengths[:4]), sum(lengths[:2])]


@pytest.mark.parametrize("packing", ["true", "false"])
def test_tokens_are_found_as_rows_are(place: Place, monkeypatch: pytest.MonkeyPatch, packing: str) -> None:
    """In halves, and a pass of the run is never larger; a resolved recipe has what was found."""
    keys = ("training.micro_batch_tokens=auto", f"data.packing={packing}")
    whole = set_up(place.recipe(*keys), Options()).engine.tokens
    train = set_up(place.recipe(), Options()).inputs.train
    assert whole == sum(sorted(train.lengths.tolist(), reverse=True)[: place.recipe().training.global_batch_size])
    seen = short_of_memory(monkeypatch, whole // 3)
    session = set_up(place.recipe(*keys), Options())
    assert session.engine.tokens == math.ceil(math.ceil(whole / 2) / 2)
    assert whole // 3 < seen[-2] <= math.ceil(whole / 2), "a pass as full as any could be"
    assert session.chosen["training.micro_batch_tokens"] == session.engine.tokens
    for step in range(session.inputs.batches.total_steps):
        for ids in session.engine.passes(session.inputs.train, session.inputs.batches.rows(step)):
            assert len(ids) == 1 or session.engine.size.tokens_of(session.inputs.train, ids) <= session.engine.tokens


SAYING_NOTHING = "~training.micro_batch_size"


def test_a_recipe_that_says_nothing_of_passes_searches_on_a_gpu_where_it_can(place: Place) -> None:
    assert finds_tokens(place.recipe(SAYING_NOTHING), "cuda")
    assert not finds_tokens(place.recipe(SAYING_NOTHING), "cpu")
    taken = ("adapter.method={galore: {layerwise: true}}", "training.max_grad_norm=none")
    for words in (
        ("training.micro_batch_size=4",),
        (SAYING_NOTHING, "training.micro_batch_tokens=64"),
        (SAYING_NOTHING, "distributed.strategy=zero2"),
        (SAYING_NOTHING, *taken),
        (SAYING_NOTHING, "data.streaming=true", "data.validation=none", "training.max_steps=3", "~training.epochs"),
    ):
        assert not finds_tokens(place.recipe(*words), "cuda"), words
    assert finds_tokens(place.recipe("training.micro_batch_tokens=auto"), "cpu")
    assert set_up(place.recipe(SAYING_NOTHING), Options()).engine.tokens is None, "there is no GPU here"


def test_auxiliary_rows_have_to_fit_too_and_few_of_them_limit_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = " ".join(["several longer words"] * 14)
    path = runs.write_rows(tmp_path / "long.jsonl", [{"prompt": words, "completion": "yes"} for _ in range(2)])
    keys = (AUTO, f"adapter.method={json.dumps({'booster': {'harmful': str(path)}})}", "data.packing=false")
    inputs = set_up(place.recipe(*keys), Options()).inputs
    assert inputs.auxiliary is not None
    whole = 2 * int(max(inputs.auxiliary.lengths))
    assert whole > 4 * int(max(inputs.train.lengths)), "four of the others fit"
    short_of_memory(monkeypatch, whole)
    assert set_up(place.recipe(*keys), Options()).engine.micro == 4, "two rows, which fit, say nothing of four"
    short_of_memory(monkeypatch, whole - 1)
    assert set_up(place.recipe(*keys), Options()).engine.micro == 1


def test_memory_without_a_gpu_is_counted_not_tried(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine would kill the process. What a pass keeps is known from one row."""
    session = set_up(place.recipe(AUTO), Options())
    (one,) = find_batch_size.longest(session.inputs.train, 1)
    session.engine.model.train()
    with keeping(session.engine.losses) as kept:
        session.engine.model(session.engine.batch(session.inputs.train, [one]))
    each = size_of(kept)
    assert each > 100 * int(session.inputs.train.lengths[one])
    for rows in (1, 2, 3, 100):
        monkeypatch.setattr(
            hardware, "available", lambda rows=rows: int(each * (rows + 0.5) / find_batch_size.SHARE_OF_MEMORY)
        )
        assert find_batch_size.expected_to_fit(session.engine, session.inputs.train, 4) == min(4, rows)
    monkeypatch.setattr(hardware, "available", lambda: int(each * 3.5 / find_batch_size.SHARE_OF_MEMORY))
    assert find_batch_size.expected_to_fit(session.engine, session.inputs.train, 4) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert find_batch_size.expected_to_fit(session.engine, session.inputs.train, 4) == 1, (
        "three processes share the memory"
    )
    monkeypatch.setattr(hardware, "available", lambda: None)
    assert find_batch_size.expected_to_fit(session.engine, session.inputs.train, 4) == 4


def test_not_even_one_row_is_said_with_what_to_change(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 1)
    with pytest.raises(MemoryExhausted, match="out of memory") as told:
        place.train(AUTO, out="never")
    assert "data.max_length" in str(told.value.hint)
    assert told.value.exit_code == 6
    assert not (place.root / "never").exists()


def test_other_errors_are_no_lack_of_memory(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_batch_size, "step_of_length_zero", lambda optimizer: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        set_up(place.recipe(AUTO), Options())


def test_a_resumed_run_may_find_another_number(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("checkpoint.every=2", "checkpoint.keep=9")
    straight = place.train(AUTO, *keys, out="straight")
    cut = runs.cut(straight, 2, place.root / "cut")
    short_of_memory(monkeypatch, 250)
    resumed = place.train(AUTO, *keys, out=cut.name, resume="last")
    assert runs.distance(runs.tensors(straight), runs.tensors(resumed), "adapter") < 1e-3


def test_running_out_later_says_where_the_memory_went(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 100)
    with pytest.raises(MemoryExhausted) as told:
        place.train("training.micro_batch_size=4", out="later")
    said = "\n".join(told.value.lines())
    assert "Estimated memory of a step: process " in said
    assert "training.micro_batch_size: 2" in said
