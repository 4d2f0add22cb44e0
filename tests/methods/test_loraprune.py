"""Pruning by the adapter's gradients: importance, schedule, what is masked, and the smaller model at the end."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from smaller import CHANNELS, GROUP, HEADS, SIZE, family, places, smaller

import lrft
from lrft.adapters.part import Run
from lrft.adapters.pruning import Masked, kept
from lrft.cli.main import run_command
from lrft.errors import RecipeError
from lrft.methods.loraprune import LoraPrune, importance
from lrft.model.load import load_config


def trained(part: LoraPrune, steps: int, total: int) -> Any:
    """(model, handle, list of the kept units of all blocks after each step)."""
    model = family("qwen3").double()
    attached = lrft.attach(model, {"method": "loraprune", "rank": 3})
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2)
    left = []
    for step in range(steps):
        run = Run(step, total, model, attached.modules, optimizer, 0, lambda t: t)
        ids = tiny.tokens(seed=step)
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        part.after_backward(run)
        optimizer.step()
        left.append({units.name: kept(run, units) for units in part.units(run)})
    return model, attached, left


def test_importance_is_that_of_the_formula_summed_over_heads_and_channels() -> None:
    model, attached, _ = trained(LoraPrune(ratio=0.0), 3, 3)
    run = Run(3, 9, model, attached.modules, None, 0, lambda t: t)
    block = model.model.layers[1]

    def entries(layer: Any) -> torch.Tensor:
        own = layer.adapter.tensors()
        A, B, gA, gB = own["A"], own["B"], own["A"].grad, own["B"].grad
        s = 2.0  # alpha is twice the rank
        return ((gB @ A + B @ gA - gB @ gA) * (layer.base.weight + s * B @ A)).abs()

    def scaled(sums: list[torch.Tensor]) -> torch.Tensor:
        values = torch.stack(sums)
        return values / values.norm()

    q, k, v, o = (entries(getattr(block.self_attn, f"{word}_proj")) for word in "qkvo")
    expected = sum(
        scaled([part[head * size : (head + 1) * size].sum() for head in range(HEADS)])
        for part, size in ((q, GROUP * SIZE), (k, SIZE), (v, SIZE), (o.T, GROUP * SIZE))
    )
    heads, channels = LoraPrune().units(run)[2:]
    assert torch.allclose(importance(run, heads), expected, rtol=1e-6)
    gate, up, down = (entries(getattr(block.mlp, f"{word}_proj")) for word in ("gate", "up", "down"))
    expected = sum(scaled(list(part.sum(1))) for part in (gate, up, down.T))
    assert torch.allclose(importance(run, channels), expected, rtol=1e-6)


def test_ever_more_is_masked_by_a_cubic_schedule_and_the_target_is_met_exactly() -> None:
    part = LoraPrune(ratio=0.5, every=2)
    model, attached, left = trained(part, 20, 20)
    for before, after in itertools.pairwise(left):
        assert all((before[name] | ~after[name]).all() for name in before), "what is pruned stays so"
    first, last = left[1], left[-1]
    assert all(mask.all() for mask in first.values()), "a tenth of the run comes before"
    assert all(int(mask.sum()) == len(mask) // 2 for mask in last.values())
    assert all(torch.equal(left[-2][name], mask) for name, mask in last.items()), "a tenth comes after"
    counts = [CHANNELS - int(masks["model.layers.0.mlp"].sum()) for masks in left]
    at_six = 0.5 * (1 - (1 - 4 / 16) ** 3)
    assert counts[5] == int(CHANNELS * at_six)
    assert counts[6] == counts[5], "every second step"
    # The masked model is the one without them.
    units = [
        [masks.nonzero().flatten().tolist() for name, masks in last.items() if word in name] for word in ("attn", "mlp")
    ]
    logits = tiny.logits(model, tiny.tokens())
    for site, adapter in attached.modules.items():
        layer = model.get_submodule(site).base
        layer.weight.data = adapter.weight(layer.weight).detach()
    small = smaller(attached.detach(), *units)
    assert torch.allclose(tiny.logits(small, tiny.tokens()), logits, atol=1e-10)


def test_what_is_masked_has_no_gradient() -> None:
    model, attached, left = trained(LoraPrune(every=1), 19, 20)
    ids = tiny.tokens()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    for block in range(2):
        gone = (~left[-1][f"model.layers.{block}.mlp"]).nonzero().flatten()
        assert len(gone)
        up, down = (attached.modules[f"model.layers.{block}.mlp.{word}_proj"] for word in ("up", "down"))
        assert not up.B.grad[gone].any()
        assert not down.inner.A.grad[:, gone].any()
        assert not down.weight(torch.ones(down.site.d, down.site.k, dtype=torch.float64))[:, gone].any()


@pytest.mark.parametrize("total", [1, 2, 5, 40])
def test_runs_of_any_length_end_at_the_target(total: int) -> None:
    part = LoraPrune(ratio=0.4)
    shares = [part.share(done, total) for done in range(1, total + 1)]
    assert shares == sorted(shares)
    assert shares[-1] == 0.4
    assert part.finished(total, total)
    assert total < 5 or not part.finished(total // 2, total)
    if total == 40:
        assert shares[3] == 0
        assert shares[35] == 0.4
        assert shares[19] == pytest.approx(0.4 * (1 - (1 - 16 / 32) ** 3))


def test_where_no_pruning_is_due_all_is_pruned_as_the_last_tenth_begins() -> None:
    _, _, left = trained(LoraPrune(every=100), 20, 20)
    assert all(mask.all() for mask in left[16].values())
    assert all(int(mask.sum()) == len(mask) // 2 for mask in left[17].values())


def test_blocks_that_are_spared_stay_whole_and_a_step_that_is_not_finite_counts_for_nothing() -> None:
    part = LoraPrune(every=1, spare=True)
    model, attached, left = trained(part, 20, 20)
    assert all(mask.all() for name, mask in left[-1].items() if ".1." in name)
    assert not left[-1]["model.layers.0.mlp"].all()
    before = dict(part.memory)
    next(iter(attached.trained().values())).grad.fill_(float("nan"))
    part.after_backward(Run(20, 40, model, attached.modules, None, 0, lambda t: t))
    assert all(torch.equal(part.memory[name], value) for name, value in before.items())


def test_only_what_can_be_pruned_is_taken() -> None:
    with pytest.raises(RecipeError, match=r"loraprune: prunes blocks of .* gpt2"):
        lrft.attach(tiny.make("gpt2"), {"method": "loraprune"})
    with pytest.raises(RecipeError, match=r"needs o_proj or down_proj among adapter\.target_modules"):
        lrft.attach(tiny.make("llama"), {"method": "loraprune", "target_modules": ["q_proj", "v_proj"]})
    attached = lrft.attach(tiny.make("llama"), {"method": "loraprune", "target_modules": ["down_proj"]})
    assert all(isinstance(adapter, Masked) for adapter in attached.modules.values())


def test_a_run_is_merged_into_a_smaller_model_that_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.make(tmp_path)
    run = place.train("adapter.method={loraprune: {every: 1}}")
    assert run_command(["merge", str(run)]) == 0
    assert "4 -> 2 heads, 44 -> 22 channels" in " ".join(capsys.readouterr().out.split())
    config = load_config(run / "merged")
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (2, 1, 22)
    assert config.head_dim == load_config(place.root / "base").head_dim
    masks = [t for name, t in runs.tensors(run).items() if name.endswith("kept")]
    assert len(masks) == 4
    assert all(t.sum() == len(t) // 2 for t in masks)
    assert run_command(["eval", str(run / "merged"), "--data", str(place.root / "validation.jsonl")]) == 0


def test_places_of_heads_are_those_of_their_queries() -> None:
    model, _, left = trained(LoraPrune(every=1), 20, 20)
    mask = model.model.layers[0].self_attn.o_proj.adapter
    heads = left[-1]["model.layers.0.self_attn"].nonzero().flatten().tolist()
    assert mask.kept.nonzero().flatten().tolist() == places(heads, GROUP * SIZE)
