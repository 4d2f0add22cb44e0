"""AdaLoRA against stock PEFT: forward, merge, penalty, budget, and every tensor after every step of a run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor, nn
from two_processes import KEYS as TWO
from two_processes import launch

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.gated import asked
from lrft.adapters.gated import built as at_first
from lrft.adapters.part import Run
from lrft.errors import RecipeError
from lrft.methods.adalora import AdaLora
from lrft.utils import files


class Toy(nn.Module):
    """Three layers and a loss in float64 throughout: that of transformers rounds to float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(14, 9), nn.Linear(9, 12), nn.Linear(12, 11, bias=False)
        self.double()

    def forward(self, x: Tensor) -> Any:
        y = self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return SimpleNamespace(loss=(y - x[:, :11]).square().mean())


def twins(method: AdaLora, rank: int, total: int, make: Callable[[], nn.Module], words: list[str]) -> Any:
    """(model, its handle, stock PEFT's model) in float64 with the same values."""
    from peft import AdaLoraConfig, get_peft_model

    options = {name: getattr(method, name) for name in ("over", "initial", "final", "every", "orthogonality")}
    built = at_first(rank, method.over)
    ours = make()
    section = {"method": {"adalora": options}, "rank": rank, "scale": 8.0 / (built + 1e-5), "target_modules": words}
    attached = lrft.attach(ours, section)
    first, last = method.phases(total)
    config = AdaLoraConfig(
        target_modules=words,
        init_r=built,
        target_r=rank,
        lora_alpha=8,
        tinit=first,
        tfinal=total - last,
        total_step=total,
        deltaT=method.every,
        orth_reg_weight=method.orthogonality,
    )
    theirs = get_peft_model(make(), config).base_model
    same_values(attached, theirs)
    return ours, attached, theirs


@torch.no_grad()
def same_values(attached: Any, theirs: Any) -> None:
    for name, mine in attached.modules.items():
        layer = theirs.model.get_submodule(name)
        layer.lora_A["default"].copy_(mine.A)
        layer.lora_B["default"].copy_(mine.B)
        layer.lora_E["default"].copy_(mine.gate[:, None])


def test_forward_and_merge_are_those_of_peft() -> None:
    def make() -> nn.Module:
        return tiny.make("llama").double()

    ours, attached, theirs = twins(AdaLora(), 4, 20, make, ["q_proj", "down_proj"])
    tiny.disturb(list(attached.trained().values()))
    same_values(attached, theirs)
    for name in attached.modules:
        expected = theirs.model.get_submodule(name).get_delta_weight("default")
        assert torch.allclose(attached.delta(name), expected, rtol=1e-10, atol=1e-12), name
    ids = tiny.tokens()
    assert torch.allclose(tiny.logits(ours, ids), tiny.logits(theirs, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("over", [1.5, 3.0])
def test_every_step_of_a_run_is_that_of_peft(every: int, over: float) -> None:
    """Penalty, scores, budget and masks: all tensors after each of 14 steps, AdamW on both sides."""
    method, total = AdaLora(over=over, initial=0.2, final=0.3, every=every), 14
    ours, attached, theirs = twins(method, 4, total, Toy, ["first", "second", "third"])
    mine = torch.optim.AdamW(attached.trained().values(), lr=1e-2)
    # PEFT 0.21 leaves its constant "ranknum" trainable, which would make the factor a trained number.
    trained = [p for name, p in theirs.named_parameters() if p.requires_grad and "ranknum" not in name]
    other = torch.optim.AdamW(trained, lr=1e-2)
    sites = len(attached.modules)
    counts = []
    for step in range(total):
        x = torch.randn(6, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        run = Run(step, total, ours, attached.modules, mine, 0, lambda t: t)
        penalty = method.loss(run)
        assert penalty is not None
        loss, expected = ours(x).loss + penalty, theirs(x).loss  # PEFT adds its penalty there
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        loss.backward()
        expected.backward()
        mine.step()
        other.step()
        method.after_step(run)
        theirs.update_and_allocate(step + 1)
        for optimizer in (mine, other):
            optimizer.zero_grad()
        for name, adapter in attached.modules.items():
            layer = theirs.model.get_submodule(name)
            for tensor, word in ((adapter.A, "lora_A"), (adapter.B, "lora_B"), (adapter.gate[:, None], "lora_E")):
                assert torch.allclose(tensor, getattr(layer, word)["default"], rtol=1e-7, atol=1e-10), (step, name)
        if step + 1 < method.phases(total)[1]:  # then PEFT forgets them
            for ours_is, theirs_is in (("mean", "exp_avg_ipt"), ("spread", "exp_avg_unc")):
                for key, value in getattr(theirs.rankallocator, theirs_is).items():
                    site, _, word = key.removesuffix(".default").rpartition(".lora_")
                    name = f"{ours_is}/{site.rpartition('.')[2]}.{'gate' if word == 'E' else word}"
                    assert torch.allclose(method.memory[name], value.view_as(method.memory[name]), rtol=1e-6), name
        counts.append(sum(int((adapter.gate != 0).sum()) for adapter in attached.modules.values()))
    first, last = method.phases(total)
    assert (first, last) == (3, 10)
    assert counts[:first] == [sites * at_first(4, method.over)] * first
    assert counts[last - 1 :] == [sites * 4] * (total - last + 1)
    for done in range(first + 1, last):
        if done % every == 0:
            assert counts[done - 1] == method.budget(done, total, sites * at_first(4, method.over), sites * 4)
    if every == 3:  # between two decisions, at 6 and 9, what was taken away comes back
        assert counts[7 - 1] > counts[6 - 1]


def test_the_budget_is_the_one_of_peft_where_peft_has_one() -> None:
    from peft import AdaLoraConfig
    from peft.tuners.adalora.layer import RankAllocator

    for total, initial, final in ((100, 0.1, 0.5), (37, 0.3, 0.2), (20, 0.5, 0.0)):
        method = AdaLora(initial=initial, final=final)
        first, last = method.phases(total)
        config = AdaLoraConfig(tinit=first, tfinal=total - last, total_step=total, init_r=12, target_r=8)
        theirs = RankAllocator(tiny.make("llama"), config, "default")
        theirs.init_bgt, theirs.target_bgt = 60, 40
        for done in range(1, total + 1):
            assert method.budget(done, total, 60, 40) == theirs.budget_schedule(done)[0], done


@pytest.mark.parametrize("total", [3, 4, 5, 10, 1000])
@pytest.mark.parametrize(("initial", "final"), [(0.0, 0.0), (0.1, 0.5), (0.5, 0.9), (0.0, 0.99)])
def test_any_run_of_three_steps_or_more_spares_two_and_ends_with_the_rank_asked_for(
    total: int, initial: float, final: float
) -> None:
    budgets = [AdaLora(initial=initial, final=final).budget(done, total, 30, 20) for done in range(1, total + 1)]
    assert budgets[:2] == [30, 30]
    assert budgets[-1] == 20
    assert budgets == sorted(budgets, reverse=True)


@pytest.mark.parametrize("over", [1.0, 1.01, 1.3, 1.5, 2.0, 3.7])
def test_the_rank_asked_for_is_read_back_from_the_rank_built(over: float) -> None:
    method = AdaLora(over=over)
    for rank in range(1, 300):
        assert asked(at_first(rank, method.over), method.over) == rank
    assert [at_first(rank, AdaLora().over) for rank in (1, 2, 8)] == [2, 3, 12]


def test_the_plan_builds_more_and_the_factor_is_alpha_over_what_is_built() -> None:
    adapter = {"method": "adalora", "rank": 8, "alpha": 16, "overrides": {"q_proj": {"rank": 4, "alpha": 6}}}
    attached = lrft.attach(tiny.make("llama"), adapter)
    for site in attached.sites:
        expected = (6, 1.0) if site.name.endswith("q_proj") else (12, 16 / 12)
        assert (site.rank, site.scale) == pytest.approx(expected), site.name
        assert attached.modules[site.name].A.shape == (site.rank, site.k)


@pytest.mark.parametrize(("words", "s"), [({}, 16 / 12), ({"alpha": 6.0}, 0.5), ({"scale": 0.3}, 0.3)])
def test_alpha_is_twice_the_recipes_rank_when_it_is_left_out(words: dict[str, Any], s: float) -> None:
    attached = lrft.attach(nn.Sequential(nn.Linear(30, 20)), {"method": "adalora", "rank": 8, **words})
    assert attached.modules["0"].site.scale == pytest.approx(s)


def stepped(method: AdaLora, attached: Any, scores: list[float], done: int, total: int = 10) -> Any:
    """`after_step` with given scores of the components, all layers one after another."""
    tiny.disturb([adapter.gate for adapter in attached.modules.values()])
    values = iter(scores)
    for name, adapter in attached.modules.items():
        for word, p in (("A", adapter.A), ("gate", adapter.gate), ("B", adapter.B)):
            p.grad = torch.zeros_like(p)
            method.memory[f"mean/{name}.{word}"] = torch.zeros_like(p)
            method.memory[f"spread/{name}.{word}"] = torch.ones_like(p)
        method.memory[f"mean/{name}.gate"] += torch.tensor([next(values) for _ in adapter.gate])
    method.after_step(Run(done - 1, total, attached.model, attached.modules, None, 0, lambda t: t))  # type: ignore[arg-type]
    return [(adapter.gate != 0).tolist() for adapter in attached.modules.values()]


def two_layers(over: float = 1.5) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 6))
    return lrft.attach(model, {"method": {"adalora": {"over": over}}, "rank": 2})


def test_the_lowest_of_all_layers_go_and_ties_take_no_more_than_asked_for() -> None:
    """Of 6 components 4 stay; equal scores, all zero, are no reason to take all (PEFT does)."""
    final = AdaLora()
    assert stepped(final, two_layers(), [3, 1, 2, 6, 5, 4], 10) == [[True, False, False], [True, True, True]]
    assert stepped(final, two_layers(), [4, 5, 6, 1, 2, 3], 10) == [[True, True, True], [False, False, True]]
    for same in ([0.0] * 6, [2.0] * 6):
        assert sum(sum(kept) for kept in stepped(final, two_layers(), same, 10)) == 4


def test_a_score_is_that_of_the_gate_and_the_means_of_row_and_column() -> None:
    method, attached = AdaLora(), two_layers()
    generator = torch.Generator().manual_seed(4)
    for name, adapter in attached.modules.items():
        for word, p in (("A", adapter.A), ("gate", adapter.gate), ("B", adapter.B)):
            for kind in ("mean", "spread"):
                method.memory[f"{kind}/{name}.{word}"] = torch.rand(p.shape, generator=generator)
    A, gate, B = (method.memory[f"mean/0.{w}"] * method.memory[f"spread/0.{w}"] for w in ("A", "gate", "B"))
    for i in range(3):
        expected = gate[i] + sum(A[i]) / len(A[i]) + sum(B[:, i]) / len(B)
        assert method.scores("0")[i].item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_is_ever_taken_when_no_more_is_built_than_asked_for() -> None:
    method = AdaLora(over=1.0)
    for done in range(1, 11):
        kept = stepped(method, two_layers(1.0), [1, 2, 3, 4], done)
        assert all(all(flags) for flags in kept)


def test_a_layer_that_lost_all_components_is_the_base_and_exports() -> None:
    attached = two_layers()
    tiny.disturb(list(attached.trained().values()))
    with torch.no_grad():
        attached.modules["0"].gate.zero_()
    assert not attached.delta("0").any()
    for name, adapter in attached.modules.items():
        form = adapter.peft()
        assert torch.allclose(form.scale * form.B @ form.A, attached.delta(name), atol=1e-6)


KEYS = ("adapter.method={adalora: {initial: 0.2, final: 0.3}}", "training.epochs=3", "training.weight_decay=0.1")


def test_a_run_takes_components_away_keeps_the_rest_and_resumes_exactly(place: Place) -> None:
    keys = (*KEYS, "checkpoint.every=1", "checkpoint.keep=99", "training.learning_rate=0.003")
    whole = place.train(*keys)
    gates = []
    for step in runs.steps(whole):
        saved = files.read_tensors(whole / f"checkpoints/step-{step:06d}/adapter/lrft.safetensors")
        gates.append(torch.cat([tensor != 0 for name, tensor in saved.items() if name.endswith(".gate")]))
    method = AdaLora(initial=0.2, final=0.3)
    first, last = method.phases(9)
    most, least = len(gates[0]), len(gates[0]) * 4 // 6
    assert [int(alive.sum()) for alive in gates] == [method.budget(done, 9, most, least) for done in range(1, 10)]
    for alive in gates[last - 1 :]:
        assert torch.equal(alive, gates[-1])
    assert len({tuple(alive.tolist()) for alive in gates[first:last]}) > 1
    for step in (1, 3, 5, 8):
        part = runs.cut(whole, step, place.root / f"cut-{step}")
        place.train(*keys, out=part.name, resume="last")
        assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


def test_the_reported_loss_is_that_of_the_tokens_without_the_penalty(place: Place) -> None:
    record = runs.records(place.train("adapter.method={adalora: {orthogonality: 1.0}}", "training.max_steps=1"))[0]
    other = runs.records(place.train("adapter.method=lora", "training.max_steps=1", out="lora"))[0]
    assert record["loss"] == pytest.approx(other["loss"], rel=1e-6)  # both start as the base
    assert record["gradient"]["A"] > 0.001  # the penalty's: the gates are zero


def test_what_does_not_go_with_it_is_refused() -> None:
    for words, sentence in (
        (["adalora", "prilora"], "both set the ranks|requires a pair"),
        (["adalora", "pissa"], "pissa requires a pair"),
        (["adalora", "sora"], "both build the update"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), {"method": words})


@pytest.mark.parametrize("model_name", tiny.MODELS)
def test_the_default_keeps_what_every_method_keeps(model_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases of test_methods.py build no more than asked for: their ranks are given."""
    monkeypatch.setitem(cases.CASES, "over", ("adalora", lambda d, k, r: r * (d + k + 1)))
    cases.check_fresh_equals_base("over", model_name)
    cases.check_fast_path_equals_definition("over", model_name)
    cases.check_gradients_reach_every_trained_tensor_by_the_second_step("over", model_name)


def test_random_start_of_the_factors_and_none_of_the_gate() -> None:
    torch.manual_seed(0)
    adapter = AdaLora().build(Site("x", 300, 200, 12))
    for factor in (adapter.A, adapter.B):
        assert factor.std().item() == pytest.approx(0.02, rel=0.1)
    assert not adapter.gate.any()
    assert compose.compose([("adalora", {})]).scale_owner.name == "adalora"  # type: ignore[union-attr]


@pytest.mark.slow
def test_two_processes_take_away_what_one_takes(place: Place) -> None:
    method = "adapter.method={adalora: {initial: 0.2, final: 0.3}}"
    one, two = runs.tensors(place.train(*TWO, method, out="one")), runs.tensors(launch(place, "two", method))
    gates = [name for name in one if name.endswith(".gate") and "adapter" in name]
    assert any(not one[name].all() for name in gates)
    for name in gates:
        assert torch.equal(one[name] == 0, two[name] == 0), name
    assert runs.distance(one, two, "adapter") < 1e-3
