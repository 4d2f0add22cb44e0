"""SoRA against its formulas: the two thresholds, the gates' part in gradients, and a LoRA with a diagonal."""

from __future__ import annotations

from typing import Any

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
from lrft.adapters.part import Run
from lrft.methods.sora import Sora, soft_threshold
from lrft.utils import files


def layer(options: dict[str, Any] | None = None) -> tuple[nn.Module, Any]:
    """(model of one float64 layer 9 x 14, handle), rank 4, moved off the start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(14, 9)).double()
    attached = lrft.attach(model, {"method": {"sora": options or {}}, "rank": 4, "alpha": 6.0})
    tiny.disturb(list(attached.trained().values()))
    return model, attached


def test_the_start_is_that_of_lora_with_normal_gates() -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": "sora", "rank": 16})
    gates = torch.cat([adapter.gate.detach() for adapter in attached.modules.values()])
    assert abs(gates.mean().item()) < 0.2
    assert gates.std().item() == pytest.approx(1.0, abs=0.15)
    for adapter in attached.modules.values():
        assert not adapter.B.any()
        assert 0.8 < adapter.A.abs().max().item() * adapter.site.k**0.5 <= 1.0


def test_the_update_is_the_formula() -> None:
    model, attached = layer()
    adapter = attached.modules["0"]
    expected = sum(6.0 / 4 * adapter.gate[i] * torch.outer(adapter.B[:, i], adapter.A[i]) for i in range(4))
    assert torch.allclose(attached.delta("0"), expected, atol=1e-12)
    x = torch.randn(5, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    base = attached.layers()["0"].base
    assert torch.allclose(model(x), x @ (base.weight + expected).T + base.bias, atol=1e-12)


def scalar(x: float, xi: float) -> float:
    """The proximal map of xi |.|, found by looking."""
    grid = [i / 10000 for i in range(-20000, 20001)]
    return min(grid, key=lambda z: (z - x) ** 2 / 2 + xi * abs(z))


def test_the_soft_threshold_minimises_distance_plus_size() -> None:
    assert soft_threshold(torch.tensor(0.15, dtype=torch.float64), 0.1).item() == pytest.approx(0.05)
    for x in (-1.5, -0.3, -0.1, -0.05, 0.0, 0.02, 0.0999, 0.1001, 0.15, 0.7):
        found = soft_threshold(torch.tensor(x, dtype=torch.float64), 0.1).item()
        assert found == pytest.approx(scalar(x, 0.1), abs=2e-4)


def released(x: Tensor, xi: float) -> Tensor:
    """The three statements of the authors' code, one after another in place."""
    x = x.clone()
    x[x > xi] -= xi
    x[x < -xi] += xi
    x[abs(x) < xi] = 0.0
    return x


def test_the_released_rule_is_that_of_the_authors_statements_and_knows_no_rate() -> None:
    x = torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64)
    method = Sora(rule="released", strength=0.1)
    for rate in (1e-4, 1.0):
        found = method.shrunk(x, rate)
        near = ((x.abs() - 0.1).abs() < 1e-9) | ((x.abs() - 0.2).abs() < 1e-9)  # rounding decides there
        assert torch.equal(found[~near], released(x, 0.1)[~near])
    assert method.shrunk(torch.tensor([0.15]), 1.0).item() == 0.0
    assert Sora(strength=0.1).shrunk(torch.tensor([0.15]), 1.0).item() == pytest.approx(0.05)


def test_the_two_defaults_are_one_threshold_at_the_authors_rate() -> None:
    x = torch.tensor([0.5, -0.7], dtype=torch.float64)
    assert torch.allclose(Sora().shrunk(x, 8e-4), Sora(rule="released").shrunk(x, 8e-4), atol=1e-15)


def test_the_threshold_follows_the_gates_own_learning_rate() -> None:
    _, attached = layer()
    gate = attached.modules["0"].gate
    before = gate.detach().clone()
    others = [p for p in attached.trained().values() if p is not gate]
    optimizer = torch.optim.SGD([{"params": others, "lr": 7.0}, {"params": [gate], "lr": 0.02}])
    Sora(strength=2.0).after_step(Run(0, 10, attached.model, attached.modules, optimizer, 0, lambda t: t))
    assert torch.allclose(gate, soft_threshold(before, 0.04))
    assert not torch.equal(gate, before)
    assert compose.compose([("sora", {"gate_ratio": 5.0})]).lr_factors() == {"gate": 5.0}


def test_a_closed_gate_stops_the_gradients_of_its_row_and_column_and_can_open_again() -> None:
    model, attached = layer()
    adapter = attached.modules["0"]
    with torch.no_grad():
        adapter.gate[1] = 0.0
    model(torch.ones(3, 14, dtype=torch.float64)).square().sum().backward()
    assert not adapter.A.grad[1].any()
    assert not adapter.B.grad[:, 1].any()
    assert adapter.A.grad[0].any()
    assert adapter.B.grad[:, 0].any()
    assert adapter.gate.grad[1] != 0


def test_what_is_exported_is_the_gated_update() -> None:
    _, attached = layer()
    adapter = attached.modules["0"]
    with torch.no_grad():
        adapter.gate[:3] = 0.0
    form = adapter.peft()
    assert torch.allclose(form.scale * form.B @ form.A, attached.delta("0"), atol=1e-12)


def test_without_strength_it_is_a_lora_with_a_trained_diagonal() -> None:
    """AdamW on an independent product B diag(g) A, the same bits after five steps."""
    model, attached = layer({"strength": 0.0})
    method, adapter, base = Sora(strength=0.0), attached.modules["0"], attached.layers()["0"].base
    mine = torch.optim.AdamW(attached.trained().values(), lr=1e-2)
    A, g, B = (p.detach().clone().requires_grad_() for p in (adapter.A, adapter.gate, adapter.B))
    other = torch.optim.AdamW([A, g, B], lr=1e-2)
    for step in range(5):
        x = torch.randn(6, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for optimizer, y in ((mine, model(x)), (other, base(x) + 1.5 * x @ A.T @ torch.diag(g) @ B.T)):
            optimizer.zero_grad()
            y.square().sum().backward()
            optimizer.step()
        method.after_step(Run(step, 5, model, attached.modules, mine, 0, lambda t: t))
        for ours, theirs in ((adapter.A, A), (adapter.gate, g), (adapter.B, B)):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_further_penalty_is_the_mean_over_all_gates() -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": "sora", "rank": 4, "overrides": {"q_proj": {"rank": 9}}})
    run = Run(0, 1, attached.model, attached.modules, None, 0, lambda t: t)  # type: ignore[arg-type]
    values = [abs(v) for adapter in attached.modules.values() for v in adapter.gate.tolist()]
    term = Sora(l1=10.0).loss(run)
    assert term is not None
    assert term.item() == pytest.approx(10 * sum(values) / len(values), rel=1e-5)
    assert Sora().loss(run) is None


def test_a_run_closes_gates_and_resumes_exactly(place: Place) -> None:
    method = "adapter.method={sora: {strength: 2.0, gate_ratio: 8.0}}"
    keys = (method, "training.weight_decay=0.1", "adapter.dropout=0.1", "checkpoint.every=1", "checkpoint.keep=99")
    whole = place.train(*keys)
    gates = [t for n, t in files.read_tensors(whole / "last/lrft.safetensors").items() if n.endswith(".gate")]
    closed = sum(int((gate == 0).sum()) for gate in gates)
    assert 0 < closed < sum(map(len, gates))
    for step in (1, 3, 5):
        part = runs.cut(whole, step, place.root / f"cut-{step}")
        place.train(*keys, out=part.name, resume="last")
        assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


@pytest.mark.slow
def test_two_processes_close_the_gates_that_one_closes(place: Place) -> None:
    method = "adapter.method={sora: {strength: 2.0, gate_ratio: 8.0}}"
    one, two = runs.tensors(place.train(*TWO, method, out="one")), runs.tensors(launch(place, "two", method))
    gates = [name for name in one if name.endswith(".gate") and "adapter" in name]
    assert any(not one[name].all() for name in gates)
    for name in gates:
        assert torch.equal(one[name] == 0, two[name] == 0), name
    assert runs.distance(one, two, "adapter") < 1e-4


def test_closed_components_are_not_exported() -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": "sora", "rank": 4})
    tiny.disturb(list(attached.trained().values()))
    adapter = next(iter(attached.modules.values()))
    with torch.no_grad():
        adapter.gate[[0, 2]] = 0
    form = adapter.peft()
    assert form.A.shape[0] == 2
    assert torch.allclose(form.scale * form.B @ form.A, adapter.delta_weight(), atol=1e-6)
    with torch.no_grad():
        adapter.gate.zero_()
    assert adapter.peft().A.shape[0] == 1, "PEFT knows no rank of zero"
    assert not adapter.peft().B.any()
