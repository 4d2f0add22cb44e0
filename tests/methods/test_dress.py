"""Regularising what will be pruned: the penalty, what it pulls on, and what pruning then costs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from smaller import CHANNELS, GROUP, HEADS, SIZE, family, places, smaller

import lrft
from lrft.adapters.part import Run
from lrft.adapters.pruning import kept
from lrft.cli.main import run_command
from lrft.errors import RecipeError
from lrft.methods.dress import Dress

STEPS = 20


def adapted(method: Any = "dress") -> Any:
    """(model, handle): float64, and trained a little, so that its units do something."""
    model = family("llama").double().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(40):
        optimizer.zero_grad()
        rows(model, step).backward()
        optimizer.step()
    model.requires_grad_(False)
    return model, lrft.attach(model, {"method": method, "rank": 4})


def rows(model: Any, step: int) -> torch.Tensor:
    ids = tiny.tokens(rows=4, seed=step % 4)
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def trained(part: Dress, method: Any = "dress", rate: float = 3e-3) -> Any:
    """(model, handle, losses, norms of what will be pruned) of a run of `STEPS` steps."""
    model, attached = adapted(method)
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=rate)
    losses, norms = [], []
    for step in range(STEPS):
        run = Run(step, STEPS, model, attached.modules, optimizer, 0, lambda t: t)
        part.before_step(run)
        optimizer.zero_grad()
        loss, term = rows(model, step), part.loss(run)
        assert (term is None) == (step >= 16 or not part.strength)
        losses.append(loss.item())
        norms.append(sum(values.detach().square().sum().item() for values in part.doomed(run)))
        (loss if term is None else loss + term).backward()
        optimizer.step()
    return model, attached, losses, norms


def test_the_penalty_pulls_on_the_chosen_and_on_nothing_else() -> None:
    model, attached = adapted()
    tiny.disturb(list(attached.trained().values()), size=0.05)
    for norm in ("l1", "l2"):
        part = Dress(strength=3.0, norm=norm)
        run = Run(7, STEPS, model, attached.modules, None, 0, lambda t: t)
        part.before_step(run)
        found = part.loss(run)
        assert found is not None
        model.zero_grad()
        found.backward()
        total = 0.0
        for block in range(2):
            chosen = {kind: part.memory[f"model.layers.{block}.{kind}"] for kind in ("self_attn", "mlp")}
            assert int(chosen["self_attn"].sum()) == HEADS // 4
            assert int(chosen["mlp"].sum()) == CHANNELS // 4
            heads, lanes = (mask.nonzero().flatten().tolist() for mask in chosen.values())
            queries, values = places(heads, GROUP * SIZE), places(heads, SIZE)
            mine = {"q": queries, "k": values, "v": values, "gate": lanes, "up": lanes, "o": queries, "down": lanes}
            for word, taken in mine.items():
                site = f"model.layers.{block}.{'mlp' if word in ('gate', 'up', 'down') else 'self_attn'}.{word}_proj"
                own = attached.tensors()
                (dW,) = [own[name] for name in own if name.startswith(f"{site}.") and own[name].requires_grad]
                by_unit = dW.grad.T if word in ("o", "down") else dW.grad
                W = model.get_submodule(site).base.weight + dW
                W = (W.T if word in ("o", "down") else W)[taken]
                slope = W.sign() if norm == "l1" else 2 * W
                total += (W.abs() if norm == "l1" else W.square()).sum().item()
                assert torch.allclose(by_unit[taken], 3.0 * 8 / 16 * slope), "grows by steps: this is the 8th of 16"
                others = [i for i in range(len(by_unit)) if i not in taken]
                assert not by_unit[others].any()
        assert found.item() == pytest.approx(3.0 * 8 / 16 * total)


def test_the_least_of_the_weights_is_chosen() -> None:
    model, attached = adapted()
    base = model.model.layers[1].mlp
    with torch.no_grad():
        for word in ("gate_proj", "up_proj"):
            getattr(base, word).base.weight[[3, 5, 7, 11, 13]] *= 1e-3
        base.down_proj.base.weight[:, [3, 5, 7, 11, 13]] *= 1e-3
    part = Dress()
    part.before_step(Run(0, STEPS, model, attached.modules, None, 0, lambda t: t))
    assert part.memory["model.layers.1.mlp"].nonzero().flatten().tolist() == [3, 5, 7, 11, 13]


@pytest.mark.parametrize("method", ["dress", ["lora", "dress"]])
def test_what_will_be_pruned_shrinks_and_pruning_then_costs_less(method: Any) -> None:
    rate = 3e-3 if method == "dress" else 3e-2
    costs = []
    for strength in (0.0, 1.0):
        _, _, losses, norms = trained(Dress(strength=strength), method, rate)
        costs.append(losses[16] - losses[15])
        if strength:
            assert norms[15] < 0.6 * norms[0]
            assert sum(b < a for a, b in itertools.pairwise(norms)) > 10
    assert costs[1] < 0.7 * costs[0]


def test_after_pruning_the_model_is_the_one_without_and_the_choice_stays() -> None:
    part = Dress()
    model, attached, _, _ = trained(part)
    run = Run(STEPS, STEPS, model, attached.modules, None, 0, lambda t: t)
    left = {units.name: kept(run, units) for units in part.units(run)}
    assert all(torch.equal(left[name], ~chosen) for name, chosen in part.memory.items())
    units = [[m.nonzero().flatten().tolist() for name, m in left.items() if word in name] for word in ("attn", "mlp")]
    logits = tiny.logits(model, tiny.tokens())
    for site, adapter in attached.modules.items():
        layer = model.get_submodule(site).base
        layer.weight.data = adapter.weight(layer.weight).detach()
    assert torch.allclose(tiny.logits(smaller(attached.detach(), *units), tiny.tokens()), logits, atol=1e-10)


def test_it_needs_a_reader_of_units_among_the_targets() -> None:
    with pytest.raises(RecipeError, match="dress: needs o_proj or down_proj"):
        lrft.attach(tiny.make("llama"), {"method": "dress", "target_modules": ["q_proj"]})


def test_a_run_is_merged_into_a_smaller_model_that_is_checked(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.make(tmp_path)
    run = place.train("adapter.method={dress: {ratio: 0.5}}", "training.learning_rate=1e-3")
    assert run_command(["merge", str(run)]) == 0
    assert "4 -> 2 heads, 44 -> 22 channels" in " ".join(capsys.readouterr().out.split())
    losses = [record["loss"] for record in runs.records(run) if "loss" in record]
    assert len(losses) == runs.STEPS


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_no_state_before_the_pruning_is_the_best_and_pruning_comes_in_any_case(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    place = Place.make(tmp_path)
    keys = ["training.learning_rate=1e-3", "evaluation.every=1", "evaluation.at_start=true"]
    keys.append("training.early_stopping={patience: 1}")
    run = place.train(f"adapter.method={{dress: {{ratio: 0.75, strength: 0, share: {share}}}}}", *keys)
    records = runs.records(run, "eval")
    end = [record["step"] for record in records].index(4 if share < 1 else runs.STEPS)
    assert [record.get("unfinished", False) for record in records] == [
        False,
        *[True] * (end - 1),
        *[False] * (len(records) - end),
    ]
    assert records[end]["loss"] > records[end - 1]["loss"], "else this says nothing of the best"
    assert records[end]["best"]
    assert not any(record["best"] for record in records[1:end])
    assert run_command(["merge", str(run)]) == 0
    assert "4 -> 2 heads, 44 -> 11 channels" in " ".join(capsys.readouterr().out.split())
