"""Ensembles: members that train side by side as each would alone, and answer with the mean of their probabilities."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import tiny
import torch
from runs import Place
from torch import nn

import lrft
from lrft.adapters.ensemble import by_copy, copying
from lrft.adapters.storage import save_adapter
from lrft.cli import main
from lrft.cli.eval import rows_for
from lrft.errors import UsageError
from lrft.evaluation.generate import generate
from lrft.evaluation.loss import loss_of
from lrft.export.merge import merge_adapter
from lrft.model.load import load_model
from lrft.objectives.sft import TokenLoss

MEMBERS = 3
WORDS = {"lora-ensemble": {"members": MEMBERS}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("ensemble"))


def ensemble(size: float = 0.1) -> tuple[Any, Any]:
    model = tiny.make("llama")
    attached = lrft.attach(model, {"method": WORDS, "rank": 4})
    tiny.disturb(list(attached.trained().values()), size=size)
    return model, attached


def alone(attached: Any, number: int) -> nn.Module:
    """One member as a LoRA in a model of its own."""
    model = tiny.make("llama")
    own = lrft.attach(model, {"method": "lora", "rank": 4})
    for name, adapter in attached.modules.items():
        own.modules[name].load({word: tensor[number] for word, tensor in adapter.tensors().items()})
    return model


def probabilities(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return tiny.logits(model, ids).softmax(-1)


def test_each_copy_of_the_rows_meets_its_own_member() -> None:
    model, attached = ensemble()
    ids = tiny.tokens()
    assert copying(model)() == MEMBERS
    together = tiny.logits(model, ids.repeat(MEMBERS, 1)).chunk(MEMBERS)
    for number, found in enumerate(together):
        assert torch.allclose(found, tiny.logits(alone(attached, number), ids), atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_members_train_as_each_would_alone_but_for_the_mean() -> None:
    model, attached = ensemble()
    ids = tiny.tokens()
    losses = TokenLoss(model.train())
    losses.copies = copying(model)
    again = ids.repeat(MEMBERS, 1)
    loss = losses({"input_ids": again, "labels": again})
    loss.backward()
    means = []
    for number in range(MEMBERS):
        own = alone(attached, number)
        handle = {name: p for name, p in own.named_parameters() if p.requires_grad}
        means.append(TokenLoss(own)({"input_ids": ids, "labels": ids}))
        means[-1].backward()
        for name, p in handle.items():
            site, word = name.rsplit(".adapter.", 1)
            mine = attached.modules[site].tensors()[word].grad[number]
            assert torch.allclose(mine, p.grad / MEMBERS, rtol=1e-3, atol=1e-5), name
    assert loss.item() == pytest.approx(torch.stack(means).mean().item(), rel=1e-5)


def test_the_evaluated_loss_is_that_of_the_mean_of_probabilities_and_no_more_than_the_mean_loss(place: Place) -> None:
    run = place.train(f"adapter.method={json.dumps(WORDS)}", "training.learning_rate=0.05", out="measured")
    trainer_rows = runs.rows(4, seed=3)
    path = runs.write_rows(place.root / "few.jsonl", trainer_rows)
    found = evaluated(run, path)
    model = load_model(place.root / "base", dtype=torch.float32)
    attached = lrft.load_adapter(model, run / "last")
    rows = found["rows"]
    mean, singles = 0.0, [0.0] * MEMBERS
    members = []
    for number in range(MEMBERS):
        own = load_model(place.root / "base", dtype=torch.float32)
        handle = lrft.attach(own, {"method": "lora", "rank": 4})
        for name, adapter in attached.modules.items():
            handle.modules[name].load({w: t[number] for w, t in adapter.tensors().items()})
        members.append(own.eval())
    for i in range(len(rows)):
        ids = torch.from_numpy(rows.tokens(i).astype(np.int64))[None]
        trained = torch.from_numpy(rows.trained(i).copy())[1:]
        each = torch.stack([probabilities(own, ids)[0, :-1] for own in members])
        of_target = each.gather(2, ids[0, 1:].expand(MEMBERS, -1)[..., None])[..., 0][:, trained]
        mean -= of_target.mean(0).log().sum().item()
        singles = [a - b for a, b in zip(singles, of_target.log().sum(1).tolist(), strict=True)]
    tokens = found["tokens"]
    assert found["loss"] == pytest.approx(mean / tokens, rel=1e-4)
    assert mean <= sum(singles) / MEMBERS + 1e-6
    assert mean != pytest.approx(sum(singles) / MEMBERS, rel=1e-5)


def evaluated(run: Path, path: Path) -> dict[str, Any]:
    """`lrft eval` in both layouts, in its parts."""
    from lrft.loading.saved import load_target
    from lrft.objectives.packing import find_layout

    target = load_target(str(run), None, False)
    model = target.model
    rows, _ = rows_for(
        str(run), str(path), {}, target.section, target.tokenizer, target.folder, model.config, "tokens", None
    )
    results = []
    # Before the rows come in copies: then a row alone is no longer a row.
    for found in [find_layout(model, rows, packing=packing, compute="fp32") for packing in (True, False)]:
        losses = TokenLoss(model, direct=found.direct)
        losses.copies = copying(model)
        results.append(loss_of(losses, rows, micro=3, pad_id=0, form=found.form))
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)
    return {**results[0], "rows": rows}


def test_generated_tokens_are_the_likeliest_by_the_mean() -> None:
    model, attached = ensemble(size=0.3)
    members = [alone(attached, number) for number in range(MEMBERS)]
    prompts = [tiny.tokens(1, length, seed=length)[0].numpy() for length in (5, 9)]
    found = generate(model, prompts, pad_id=0, stop_ids=[], max_new_tokens=6, batch_size=2, copies=copying(model))
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt)[None]
        for token in answer:
            mean = torch.stack([probabilities(own, ids)[0, -1] for own in members]).mean(0)
            assert mean[token] >= mean.max() - 1e-6
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_identical_members_are_the_member() -> None:
    model, attached = ensemble()
    for adapter in attached.modules.values():
        adapter.load({word: tensor[:1].expand_as(tensor).clone() for word, tensor in adapter.tensors().items()})
    ids = tiny.tokens()
    losses = TokenLoss(model)
    losses.copies = copying(model)
    again = ids.repeat(MEMBERS, 1)
    expected = TokenLoss(alone(attached, 0))({"input_ids": ids, "labels": ids})
    assert losses({"input_ids": again, "labels": again}).item() == pytest.approx(expected.item(), rel=1e-6)


def test_members_start_apart() -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": WORDS, "rank": 4})
    A = next(iter(attached.modules.values())).A
    assert not torch.equal(A[0], A[1])


def test_what_is_not_in_copies_is_refused() -> None:
    with pytest.raises(ValueError, match="only part of the tokens"):
        by_copy(torch.zeros(7, 4), 3)


def test_each_member_is_saved_as_a_peft_lora(tmp_path: Path) -> None:
    from peft import PeftModel

    base = tiny.save(tiny.make("llama"), tmp_path / "base")
    _, attached = ensemble()
    (tmp_path / "adapter").mkdir()
    save_adapter(attached, tmp_path / "adapter", base={"name": str(base)})
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()
    for number in range(MEMBERS):
        stock = PeftModel.from_pretrained(tiny.make("llama"), tmp_path / "adapter" / f"member-{number + 1}").eval()
        expected = tiny.logits(alone(attached, number), tiny.tokens())
        assert torch.allclose(tiny.logits(stock, tiny.tokens()), expected, atol=1e-5)


def test_a_run_resumes_exactly_measures_the_mean_and_is_not_merged(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = (f"adapter.method={json.dumps(WORDS)}", "evaluation.every=2", "evaluation.at_start=true")
    straight = place.train(*keys, "checkpoint.every=2", "checkpoint.keep=9", out="straight")
    start = runs.records(straight, "eval")[0]["loss"]
    base = runs.records(place.train(*keys[1:], out="plain"), "eval")[0]["loss"]
    assert start == pytest.approx(base, rel=1e-5)
    cut = runs.cut(straight, 2, place.root / "cut")
    resumed = place.train(*keys, "checkpoint.every=2", "checkpoint.keep=9", out=cut.name, resume="last")
    assert runs.differing(runs.tensors(straight), runs.tensors(resumed)) == []
    with pytest.raises(UsageError, match="not mergeable"):
        merge_adapter(straight / "last", place.root / "merged")
    assert main.run_command(["verify", str(straight)]) == 0
    said = capsys.readouterr().out
    assert "skipped: this adapter is not mergeable" in said


def test_a_loss_made_of_logits_is_divided_by_the_copies() -> None:
    model, _ = ensemble()
    ids = tiny.tokens()
    again = ids.repeat(MEMBERS, 1)
    losses = TokenLoss(model.train())
    losses.copies = copying(model)
    plain = losses({"input_ids": again, "labels": again}).item()
    losses.extra = lambda outputs: torch.tensor(0.5)
    n = ids.numel() - len(ids)
    assert losses({"input_ids": again, "labels": again}).item() == pytest.approx(plain + 0.5 * n, rel=1e-5)
    assert math.isclose(float(losses.take_extra()), 0.5 * n)
