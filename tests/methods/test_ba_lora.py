"""BA-LoRA's terms: the formulas of both versions by slow loops, at the right positions, and in runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import classifiers
import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor

import lrft
from lrft.adapters.part import Run
from lrft.methods import ba_lora
from lrft.methods.ba_lora import BaLora
from lrft.objectives.sft import Outputs, TokenLoss

N, V = 23, 57


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("ba"))


def logits(seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run_at(step: int, total: int = 100) -> Run:
    return Run(step, total, torch.nn.Identity(), {}, None, 0, lambda t: t)  # type: ignore[arg-type]


def term(part: BaLora, Z: Tensor, Z0: Tensor, step: int = 99) -> float:
    found = part.output_loss(run_at(step), Outputs(torch.zeros(len(Z)), lambda: Z, lambda: Z0))
    return 0.0 if found is None else found.item()


def only(name: str, **more: Any) -> BaLora:
    """One term with coefficient 1 and no schedule."""
    return BaLora(**{"consistency": 0.0, "diversity": 0.0, "svd": 0.0, "schedule": False, name: 1.0, **more})


def test_consistency_is_the_forward_divergence_from_the_base() -> None:
    Z, Z0 = logits(1), logits(2)
    for version, tau in ((2, 2.0), (1, 1.0)):
        total = 0.0
        for row, row0 in zip(Z, Z0, strict=True):
            p, q = torch.softmax(row0 / tau, 0), torch.softmax(row / tau, 0)
            total += tau**2 * sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
        assert term(only("consistency", version=version), Z, Z0) == pytest.approx(total / N, rel=1e-9)
    assert term(only("consistency"), Z, Z) == pytest.approx(0, abs=1e-12)


def test_a_very_negative_logit_makes_nothing_infinite() -> None:
    Z = logits(1)
    Z[0, 0] = -1e4
    assert math.isfinite(term(only("consistency"), Z, logits(2)))
    assert math.isfinite(term(only("diversity", top=0), Z, logits(2)))


def test_diversity_is_the_negative_entropy_of_the_largest_logits() -> None:
    Z = logits(1)
    for top, version in ((5, 2), (0, 2), (20, 1)):
        kept = V if top == 0 or version == 1 else top
        total = 0.0
        for row in Z:
            p = torch.softmax(row.sort(descending=True).values[:kept], 0)
            total += sum(a * math.log(a) for a in p.tolist())
        found = term(only("diversity", top=top, version=version), Z, Z)
        assert found == pytest.approx(total / N, rel=1e-9)
        assert -math.log(kept) <= found <= 0


def test_svd_is_the_share_of_the_leading_singular_values_and_its_gradient() -> None:
    for version, k in ((2, 4), (1, 3)):
        Z, slow = logits(1).requires_grad_(), logits(1).requires_grad_()
        S = torch.linalg.svdvals(slow)
        expected = -S[:k].sum() / (slow.norm() if version == 2 else S.sum())
        expected.backward()
        part = only("svd", version=version, leading=k)
        found = part.output_loss(run_at(99), Outputs(torch.zeros(N), lambda Z=Z: Z, lambda Z=Z: Z))
        assert found is not None
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        found.backward()
        assert torch.allclose(Z.grad, slow.grad, rtol=1e-5, atol=1e-8)


def test_svd_of_equal_singular_values_of_one_row_and_of_nothing() -> None:
    Z = torch.eye(10, 12, dtype=torch.float64, requires_grad=True)
    found = only("svd", leading=10).output_loss(run_at(99), Outputs(torch.zeros(10), lambda: Z, lambda: Z))
    assert found is not None
    found.backward()
    assert found.item() == pytest.approx(-math.sqrt(10), rel=1e-6)
    assert torch.isfinite(Z.grad).all()
    assert term(only("svd"), torch.randn(1, V), torch.randn(1, V)) == 0
    assert term(only("svd"), torch.zeros(4, V), torch.zeros(4, V)) == 0


def test_schedules_of_version_2() -> None:
    assert ba_lora.falling(0, 100) == 1.0
    assert ba_lora.falling(50, 100) == pytest.approx(0.55)
    assert ba_lora.falling(100, 100) == pytest.approx(0.1)
    rises = [ba_lora.rising(step, 100) for step in range(100)]
    assert rises[:21] == [0.0] * 21
    assert rises[21:26] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(rises[26:]) == {1.0}
    # Version 1 has none.
    Z, Z0 = logits(1), logits(2)
    assert term(BaLora(version=1), Z, Z0, step=0) == pytest.approx(term(BaLora(version=1), Z, Z0, step=99))
    assert term(BaLora(), Z, Z0, step=0) != pytest.approx(term(BaLora(), Z, Z0, step=99), rel=1e-3)


def test_adaptive_consistency_follows_how_sure_the_base_is() -> None:
    Z = logits(1)
    unsure, sure = torch.zeros(N, V, dtype=torch.float64), 1000 * torch.eye(N, V, dtype=torch.float64)
    plain, adaptive = only("consistency"), only("consistency", adaptive=True)
    assert term(adaptive, Z, unsure) == pytest.approx(0.1 * term(plain, Z, unsure))
    assert term(adaptive, Z, sure) == pytest.approx(term(plain, Z, sure))


def test_published_coefficients() -> None:
    assert BaLora().coefficients() == (0.025, 0.005, 0.005)
    assert BaLora(version=1).coefficients() == (1e-4, 3e-4, 1e-4)
    assert BaLora(svd=0.0).coefficients() == (0.025, 0.005, 0.0)


def test_terms_see_the_logits_that_predict_the_trained_tokens_and_the_base_without_the_adapter() -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    with torch.no_grad():
        base = model(input_ids=ids).logits
    attached = lrft.attach(model, {"method": ["pissa", "ba-lora"], "rank": 4})
    tiny.disturb(list(attached.trained().values()), size=0.05)
    labels = ids.clone()
    labels[:, :5] = -100
    labels[1, 8] = -100
    with torch.no_grad():
        now = model(input_ids=ids).logits
    chosen = labels[:, 1:] != -100
    for direct in (True, False):
        losses = TokenLoss(model, direct=direct, as_base=attached.disabled).train()
        seen: list[Outputs] = []
        losses.extra = lambda outputs, seen=seen: seen.append(outputs) or torch.tensor(0.5)  # type: ignore[func-returns-value]
        loss = losses({"input_ids": ids, "labels": labels})
        assert torch.equal(seen[0].targets, ids[:, 1:][chosen])
        assert torch.allclose(seen[0].logits, now[:, :-1][chosen], atol=1e-4)
        assert torch.allclose(seen[0].base_logits(), base[:, :-1][chosen], atol=1e-4)
        assert not torch.allclose(now, base, atol=1e-2)
        losses.extra = None
        plain = losses({"input_ids": ids, "labels": labels})
        assert loss.item() == pytest.approx(plain.item() + 0.5 * int(chosen.sum()), rel=1e-5)


def test_accumulated_or_not_and_packed_or_not_the_step_is_the_same_without_svd(place: Place) -> None:
    """The term of the singular values depends on the micro-batch by nature; the others are means over tokens."""
    method = "adapter.method=[pissa, {ba-lora: {svd: 0, consistency: 0.5, diversity: 0.5}}]"
    keys = (method, "training.max_steps=3")
    one, four, padded = (
        place.train(*keys, f"training.micro_batch_size={micro}", f"data.packing={packing}", out=f"m{micro}{packing}")
        for micro, packing in ((1, "true"), (4, "true"), (2, "false"))
    )
    assert runs.distance(runs.tensors(one), runs.tensors(four), "adapter") < 2e-4
    assert runs.distance(runs.tensors(one), runs.tensors(padded), "adapter") < 2e-4


def test_a_run_tells_the_token_loss_and_the_terms_apart_and_resumes_exactly(place: Place) -> None:
    keys = ("adapter.method=[pissa, ba-lora]", "checkpoint.every=2", "checkpoint.keep=9")
    straight = place.train(*keys, out="straight")
    plain = place.train("adapter.method=pissa", out="plainly")
    first, alone = runs.records(straight)[0], runs.records(plain)[0]
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-5), "the loss is that of the tokens"
    assert first["regularisation"] == pytest.approx(0, abs=1e-4), "at the start the base and the model are the same"
    assert any(abs(r["regularisation"]) > 1e-4 for r in runs.records(straight)[1:])
    assert "regularisation" not in alone
    cut = runs.cut(straight, 2, place.root / "cut")
    assert runs.differing(runs.tensors(straight), runs.tensors(place.train(*keys, out=cut.name, resume="last"))) == []


D = 4


def of_texts(part: BaLora, Z: Tensor, Z0: Tensor) -> float:
    outputs = Outputs(torch.zeros(len(Z), 1), lambda: Z, lambda: Z0, of_texts=True)
    found = part.output_loss(run_at(99), outputs)
    return 0.0 if found is None else found.item()


def test_of_texts_rows_are_compared_by_direction_in_version_1() -> None:
    Z, Z0 = logits(1)[:, :D], logits(2)[:, :D]
    total = 0.0
    for row, row0 in zip(Z.tolist(), Z0.tolist(), strict=True):
        long, long0 = math.hypot(*row), math.hypot(*row0)
        total += sum((a / long - b / long0) ** 2 for a, b in zip(row, row0, strict=True))
    assert of_texts(only("consistency", version=1), Z, Z0) == pytest.approx(total / (N * D), rel=1e-9)
    assert of_texts(only("consistency"), Z, Z0) == pytest.approx(term(only("consistency"), Z, Z0))


def test_of_texts_labels_are_to_vary_each_by_itself() -> None:
    Z = logits(1)[:, :D]
    columns = Z.T.tolist()
    means = [sum(column) / N for column in columns]
    total = 0.0
    for i in range(D):
        for j in range(D):
            pairs = zip(columns[i], columns[j], strict=True)
            C = sum((a - means[i]) * (b - means[j]) for a, b in pairs) / (N - 1)
            total += C**2 if i != j else 0.0
    for version in (1, 2):
        assert of_texts(only("diversity", version=version), Z, Z) == pytest.approx(total / D, rel=1e-9)
    assert of_texts(only("diversity"), Z[:1], Z[:1]) == 0, "one row does not vary"


def test_of_texts_svd_is_the_share_of_the_sum_and_constant_for_few_labels() -> None:
    Z = logits(1)[:, :D]
    S = torch.linalg.svdvals(Z)
    for version in (1, 2):
        found = of_texts(only("svd", version=version, leading=2), Z, Z)
        assert found == pytest.approx(-(S[:2].sum() / S.sum()).item(), rel=1e-6)
    assert of_texts(only("svd"), Z, Z) == pytest.approx(-1.0)
    assert BaLora().coefficients(of_texts=True) == (0.15, 0.03, 0.03)
    assert BaLora(version=1).coefficients(of_texts=True) == (1e-4, 4e-4, 1e-4)


@pytest.mark.parametrize("base", ["llama", "bert"])
def test_a_classifier_is_held_by_the_base_with_the_head_as_it_started(base: str, tmp_path: Path) -> None:
    """And micro-batches count by their texts."""
    place = classifiers.place(tmp_path, base)
    method = "adapter.method=[pissa, {ba-lora: {svd: 0, diversity: 0, consistency: 2.0, schedule: false}}]"
    keys = (method, "training.max_steps=4", "training.learning_rate=0.01")
    first, *later = runs.records(one := place.train(*keys, "training.micro_batch_size=1", out="one"))
    assert first["regularisation"] == pytest.approx(0, abs=1e-5)
    assert later[-1]["regularisation"] > 1e-3
    four = place.train(*keys, "training.micro_batch_size=4", out="four")
    assert runs.distance(runs.tensors(one), runs.tensors(four), "adapter") < 2e-4
    free = place.train("adapter.method=pissa", *keys[1:], "training.micro_batch_size=4", out="free")
    assert runs.records(free)[0]["loss"] == pytest.approx(first["loss"], rel=1e-5), "the loss is that of the labels"
    assert runs.distance(runs.tensors(four), runs.tensors(free), "adapter") > 1e-3


def test_without_pissa_it_says_what_the_paper_does() -> None:
    assert "pissa" in BaLora().advice([], offset_from_init=False)[0]
    assert BaLora().advice([], offset_from_init=True) == []
