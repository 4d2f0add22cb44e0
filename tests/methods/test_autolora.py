"""AutoLoRA: its gates, its two levels on a problem with known derivatives, and a search with the run that follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from passes import Problem
from runs import Place
from torch import Tensor, nn

from lrft.adapters.storage import read_adapter
from lrft.adapters.two_levels import hypergradient, two_level_gradient
from lrft.errors import RecipeError
from lrft.methods.autolora import selected


def test_the_update_is_softmax_gated_and_the_shares_sum_to_one() -> None:
    model, attached = tiny.layer("autolora", 9, 7)
    adapter = attached.modules["0"]
    assert torch.equal(adapter.selection, torch.zeros(4, dtype=torch.float64))
    assert adapter.site.scale == 2.0
    tiny.disturb(list(attached.trained().values()))
    shares = adapter.selection.exp() / adapter.selection.exp().sum()
    assert shares.sum().item() == pytest.approx(1)
    dW = sum(2.0 * shares[i] * adapter.B[:, i, None] * adapter.A[None, i] for i in range(4))
    assert tiny.same_function(model, attached, dW)


@pytest.mark.parametrize(
    ("values", "rank"),
    [([0.0] * 7, 7), ([3.7] * 5, 5), ([1.0, 0.0, 0.0, 0.0], 1), ([1.0, 1.0, 0.0, -9.0], 2), ([-5.0, -5.0, -4.9], 1)],
)
def test_components_count_that_have_at_least_their_share(values: list[float], rank: int) -> None:
    assert selected(torch.tensor(values)) == rank


class TwoLayers:
    """y = B diag(softmax(a)) tanh(A x) on two sets of rows, float64."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.A, self.B, self.a = (nn.Parameter(draw(*shape)) for shape in ((4, 6), (3, 4), (4,)))
        self.rows = [(draw(8, 6), draw(8, 3)) for _ in range(2)]

    def loss(self, which: int, lower: Any = None, a: Tensor | None = None) -> Tensor:
        A, B = lower or (self.A, self.B)
        x, y = self.rows[which]
        gates = (self.a if a is None else a).softmax(0)
        return (((x @ A.T).tanh() * gates @ B.T - y) ** 2).mean()

    def problem(self, lr: float = 0.05) -> Problem:
        return Problem([self.A, self.B, self.a], lambda: self.loss(0), lambda: self.loss(1), lr)


def test_the_hypergradient_is_direct_minus_the_mixed_derivative_times_the_lower_gradient() -> None:
    """Against autograd's second derivatives, within the 1e-2 of the specification and much nearer."""
    toy = TwoLayers()
    found = hypergradient(toy.problem(), {toy.a})
    top = torch.autograd.grad(toy.loss(1), [toy.A, toy.B, toy.a])
    inner = torch.autograd.grad(toy.loss(0), [toy.A, toy.B], create_graph=True)
    product = sum((g * v).sum() for g, v in zip(inner, top[:2], strict=True))
    expected = top[2] - torch.autograd.grad(product, toy.a)[0]
    assert found.keys() == {toy.a}
    assert (found[toy.a] - expected).norm() < 1e-3 * expected.norm()
    assert (found[toy.a] - top[2]).norm() > 0.1 * expected.norm()


def test_a_step_of_both_levels_is_that_of_the_released_loop() -> None:
    """Three steps against the loop written out: unroll, hypergradient, roll back, lower step with the new selection."""
    ours, theirs = TwoLayers(), TwoLayers()
    problem = ours.problem()
    lower = torch.optim.AdamW([theirs.A, theirs.B], lr=0.05, weight_decay=0.0)
    upper = torch.optim.AdamW([theirs.a], lr=0.05, weight_decay=0.0)

    def lower_step() -> None:
        theirs.A.grad, theirs.B.grad = torch.autograd.grad(theirs.loss(0), [theirs.A, theirs.B])
        lower.step()

    for _ in range(3):
        problem.step(two_level_gradient(problem.own(), problem, [ours.a]))

        kept = [p.detach().clone() for p in (theirs.A, theirs.B)]
        saved = lower.state_dict()
        saved["state"] = {k: {n: t.clone() for n, t in v.items()} for k, v in saved["state"].items()}
        lower_step()
        gA, gB, direct = torch.autograd.grad(theirs.loss(1), [theirs.A, theirs.B, theirs.a])
        eps = 0.01 / torch.cat([gA.flatten(), gB.flatten()]).norm()
        sides = [
            torch.autograd.grad(theirs.loss(0, (theirs.A + s * eps * gA, theirs.B + s * eps * gB)), theirs.a)[0]
            for s in (1, -1)
        ]
        theirs.a.grad = direct - (sides[0] - sides[1]) / (2 * eps)
        with torch.no_grad():
            for p, value in zip((theirs.A, theirs.B), kept, strict=True):
                p.copy_(value)
        lower.load_state_dict(saved)
        upper.step()
        lower_step()
    for p, q in ((ours.A, theirs.A), (ours.B, theirs.B), (ours.a, theirs.a)):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-12)
    assert (ours.a - TwoLayers().a).abs().min() > 1e-3


def test_each_level_has_its_own_rows() -> None:
    """The rows of the other level reach the lower tensors through the selection alone, and the other way round."""
    toy = TwoLayers()
    plain = two_level_gradient(toy.problem().own(), toy.problem(lr=0.0), [toy.a])
    toy.rows[1] = (toy.rows[1][0], toy.rows[1][1] + 1.0)
    changed = two_level_gradient(toy.problem().own(), toy.problem(lr=0.0), [toy.a])
    assert torch.equal(plain[toy.A], changed[toy.A])
    assert torch.equal(plain[toy.B], changed[toy.B])
    assert not torch.allclose(plain[toy.a], changed[toy.a])


def test_swapped_rows_are_another_run() -> None:
    toys = [TwoLayers(), TwoLayers()]
    toys[1].rows.reverse()
    for toy in toys:
        problem = toy.problem()
        for _ in range(3):  # Adam's first step knows signs alone
            problem.step(two_level_gradient(problem.own(), problem, [toy.a]))
    assert not torch.allclose(toys[0].A, toys[1].A)
    assert not torch.allclose(toys[0].a, toys[1].a)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("autolora"), train_rows=12)


@pytest.fixture(scope="module")
def search(place: Place) -> Path:
    return place.train("adapter.method=autolora", "training.learning_rate=0.05", out="search")


def test_a_second_run_trains_the_ranks_of_the_search(place: Place, search: Path) -> None:
    found = {site: selected(t["selection"]) for site, t in read_adapter(search / "last").tensors.items()}
    assert len(set(found.values())) > 1
    for name in (search, search / "last"):
        method = f"adapter.method=[pissa, {{autolora-ranks: {{search: {name}}}}}]"
        run = place.train(method, "checkpoint.every=2", "checkpoint.keep=9", out="retrained", fresh=True)
        assert {site.name: site.rank for site in read_adapter(run / "last").sites} == found
    cut = runs.cut(run, 2, place.root / "cut")
    place.train(method, out=cut.name, resume="last")
    assert runs.differing(runs.tensors(run), runs.tensors(cut)) == []


def test_what_is_no_search_is_refused(place: Place, search: Path, tmp_path: Path) -> None:
    plain = place.train("training.max_steps=1", out="plain")
    for folder, sentence in (
        ("", "needs a finished run of autolora"),
        (tmp_path, "is neither a run nor an adapter folder"),
        (plain, "is no run of autolora"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            place.train(f"adapter.method=[lora, {{autolora-ranks: {{search: '{folder}'}}}}]", out="no")
    narrow = place.train("adapter.method=autolora", "adapter.target_modules=[q_proj]", out="narrow")
    with pytest.raises(RecipeError, match=r"has no rank for .*: it was searched with other target_modules"):
        place.train(f"adapter.method=[lora, {{autolora-ranks: {{search: {narrow}}}}}]", out="no")
