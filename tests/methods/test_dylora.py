"""DyLoRA: every first part is an adapter by itself, the draw belongs to the step, and a step trains what it says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import At, Place
from torch import Tensor, nn
from two_processes import KEYS as TWO
from two_processes import launch

import lrft
from lrft.adapters import compose
from lrft.adapters.part import Run
from lrft.adapters.storage import read_adapter, save_adapter
from lrft.errors import RecipeError
from lrft.methods.dylora import Dylora

RANK = 8


def layer(method: Dylora | None = None, *, train: bool = True) -> tuple[nn.Module, Any, Any]:
    """(model of one float64 layer 9 x 14, handle, its adapter), rank 8, alpha 16."""
    method = method or Dylora()
    options = {"use_rank": method.use_rank, "frozen": method.frozen, "strict": method.strict}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(14, 9)).double()
    attached = lrft.attach(model, {"method": {"dylora": options}, "rank": RANK, "alpha": 16.0})
    tiny.disturb(list(attached.trained().values()))
    return model.train(train), attached, attached.modules["0"]


def at(attached: Any, step: int, optimizer: Any = None, seed: int = 0) -> Run:
    return Run(step, 100, attached.model, attached.modules, optimizer, seed, lambda t: t)


def inputs(seed: int = 1) -> Tensor:
    return torch.randn(5, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def truncated(adapter: Any, b: int) -> Tensor:
    """The paper's update of the first b components, alpha 16."""
    return 16.0 / b * adapter.B[:, :b] @ adapter.A[:b]


@pytest.mark.parametrize("b", range(1, RANK + 1))
def test_a_step_uses_the_first_b_components_with_the_factor_alpha_over_b(b: int) -> None:
    model, attached, adapter = layer()
    base, x = attached.layers()["0"].base, inputs()
    adapter.draw(b, frozen=True)
    assert torch.allclose(model(x), base(x) + x @ truncated(adapter, b).T, atol=1e-12)
    assert torch.allclose(adapter.delta_weight(), truncated(adapter, b), atol=1e-12)
    assert torch.allclose(adapter.delta(x), x @ truncated(adapter, b).T, atol=1e-12)
    assert (adapter.site.scale * adapter.drawn[:b]).tolist() == pytest.approx([16.0 / b] * b)


def test_what_comes_after_the_first_b_does_not_matter_to_the_last_bit() -> None:
    model, _, adapter = layer()
    adapter.draw(3, frozen=False)
    before = model(inputs()).clone()
    with torch.no_grad():
        adapter.A[3:] += 7.0
        adapter.B[:, 3:] -= 5.0
    assert torch.equal(model(inputs()), before)
    with torch.no_grad():
        adapter.A[2:3] += 7.0
    assert not torch.equal(model(inputs()), before)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_gradient_reaches_the_last_component_alone_or_all_that_are_drawn(frozen: bool) -> None:
    model, attached, adapter = layer(Dylora(frozen=frozen))
    base, x = attached.layers()["0"].base, inputs()
    adapter.draw(3, frozen=frozen)
    model(x).square().sum().backward()
    A, B = (p.detach().clone().requires_grad_() for p in (adapter.A, adapter.B))
    (base(x) + 16.0 / 3 * x @ A[:3].T @ B[:, :3].T).square().sum().backward()
    trains = torch.arange(RANK) == 2 if frozen else torch.arange(RANK) < 3
    assert torch.allclose(adapter.A.grad, torch.where(trains[:, None], A.grad, 0.0), atol=1e-9)
    assert torch.allclose(adapter.B.grad, torch.where(trains, B.grad, 0.0), atol=1e-9)
    assert [bool(row.any()) for row in adapter.A.grad] == trains.tolist()


def test_the_draw_is_uniform_and_a_function_of_seed_and_step() -> None:
    method, (_, attached, _) = Dylora(), layer()
    drawn = [method.drawn(at(attached, step), RANK) for step in range(4000)]
    torch.manual_seed(123)
    assert [Dylora().drawn(at(attached, step), RANK) for step in range(100)] == drawn[:100]
    assert [method.drawn(at(attached, step, seed=1), RANK) for step in range(100)] != drawn[:100]
    counts = Counter(drawn)
    assert sorted(counts) == list(range(1, RANK + 1))
    assert all(400 < count < 600 for count in counts.values())  # 500 +- 21


def test_one_draw_serves_layers_of_every_rank_and_leaves_the_global_generator_alone() -> None:
    model = tiny.make("llama").train()
    attached = lrft.attach(model, {"method": "dylora", "rank": 4, "overrides": {"q_proj": {"rank": 8}}})
    state = torch.get_rng_state()
    for step in range(20):
        Dylora().before_step(at(attached, step))
        found = {(a.site.rank, int((a.drawn > 0).sum())) for a in attached.modules.values()}
        ((_, small), (_, large)) = sorted(found)
        assert small == (large + 1) // 2
    assert torch.equal(torch.get_rng_state(), state)


def test_after_the_backward_pass_everything_sees_all_components() -> None:
    method, (model, attached, adapter) = Dylora(), layer()
    x = inputs()
    method.before_step(at(attached, 1))
    assert method.drawn(at(attached, 1), RANK) < RANK
    inside = model(x)
    full = truncated(adapter, RANK)
    assert not torch.allclose(inside, attached.layers()["0"].base(x) + x @ full.T)
    assert torch.allclose(model.eval()(x), attached.layers()["0"].base(x) + x @ full.T, atol=1e-12)
    model.train()
    method.after_backward(at(attached, 1))
    assert torch.allclose(attached.delta("0"), full, atol=1e-12)
    form = adapter.peft()
    assert torch.allclose(form.scale * form.B @ form.A, full, atol=1e-12)


@pytest.mark.parametrize("b", [1, 3, RANK])
def test_evaluation_merging_and_export_use_the_rank_that_is_asked_for(b: int, tmp_path: Any) -> None:
    model, attached, adapter = layer(Dylora(use_rank=b), train=False)
    base, x = attached.layers()["0"].base, inputs()
    expected = base(x) + x @ truncated(adapter, b).T
    assert torch.allclose(model(x), expected, atol=1e-12)
    assert torch.allclose(attached.delta("0"), truncated(adapter, b), atol=1e-12)
    form = adapter.peft()
    assert torch.allclose(form.scale * form.B @ form.A, truncated(adapter, b), atol=1e-12)
    save_adapter(attached, tmp_path, base={"name": "none"})
    other = nn.Sequential(nn.Linear(14, 9)).double()
    other[0].load_state_dict(base.state_dict())
    lrft.load_adapter(other, tmp_path)
    assert torch.allclose(other.eval()(x), expected, atol=1e-12)
    saved = read_adapter(tmp_path)
    assert torch.allclose(saved.build(saved.sites[0]).delta_weight(), truncated(adapter, b), atol=1e-12)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_strict_leaves_what_a_step_does_not_train_and_adamw_alone_does_not(strict: bool, frozen: bool) -> None:
    method = Dylora(strict=strict, frozen=frozen)
    model, attached, adapter = layer(method)
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2)
    strayed = False
    for step in range(12):
        run = at(attached, step, optimizer)
        A, B = adapter.A.detach().clone(), adapter.B.detach().clone()
        optimizer.zero_grad()
        method.before_step(run)
        model(inputs(step)).square().sum().backward()
        method.after_backward(run)
        optimizer.step()
        method.after_step(run)
        b = method.drawn(run, RANK)
        trains = torch.arange(RANK) == b - 1 if frozen else torch.arange(RANK) < b
        moved_A, moved_B = (A != adapter.A).any(dim=1), (B != adapter.B).any(dim=0)
        assert moved_A[trains].all()
        assert moved_B[trains].all()
        strayed |= bool(moved_A[~trains].any() or moved_B[~trains].any())
    assert strayed != strict


@pytest.mark.parametrize("options", ["{}", "{frozen: false, strict: true, use_rank: 2}"])
def test_a_run_resumes_exactly_and_evaluates_at_the_rank_in_use(
    place: Place, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws: dict[int, int] = {}

    def note(run: Run) -> None:
        adapter = next(iter(run.adapters.values()))
        b = int((adapter.drawn > 0).sum())
        assert draws.setdefault(run.step, b) == b  # a resumed run draws what the whole one drew

    runs.add_parts(monkeypatch, At("loss", 0, note))
    method = f"adapter.method={{dylora: {options}}}"
    keys = (method, "training.weight_decay=0.1", "training.epochs=3", "evaluation.every=3")
    keys += ("checkpoint.every=1", "checkpoint.keep=99")
    whole = place.train(*keys)
    assert len(set(draws.values())) > 1
    for step in (1, 4, 7):
        part = runs.cut(whole, step, place.root / f"cut-{step}")
        place.train(*keys, out=part.name, resume="last")
        assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []
        assert runs.records(part, "eval") == runs.records(whole, "eval")


def test_what_cannot_be_is_refused() -> None:
    for words, more, sentence in (
        ({"dylora": {"use_rank": 9}}, {}, "use_rank 9 is larger than rank 8"),
        (["dylora", "rslora"], {}, "both set the scaling factor"),
        (["dylora", "dora"], {}, "dora requires an update"),
        (["dylora", "prilora"], {}, "both set the ranks"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), {"method": words, "rank": 8, **more})
    assert compose.compose([("dylora", {})]).may_not_move == {"A"}


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(place: Place) -> None:
    for i, options in enumerate(("{}", "{frozen: false, strict: true}")):
        method = f"adapter.method={{dylora: {options}}}"
        one = runs.tensors(place.train(*TWO, method, out=f"one-{i}"))
        assert runs.distance(one, runs.tensors(launch(place, f"two-{i}", method)), "adapter") < 1e-4
