"""Parts act through their hooks: in the documented order, with the documented effect, and across a resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import runs
import torch
from runs import At, Penalty, Place
from torch import Tensor

from lrft.adapters.adapter import Adapter, Delta, Site
from lrft.adapters.part import Part, Run
from lrft.methods.lora import Lora
from lrft.utils import files

STEP = ("before_step", "loss", "after_backward", "after_step")
SITES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")
KEYS = ("adapter.target_modules=[q_proj, v_proj]", "adapter.layers=[0]", "training.max_steps=3")


class Watched(Lora):
    """LoRA that notes when it is asked to build."""

    said: list[tuple[Any, ...]]

    def build(self, site: Site) -> Delta:
        self.said.append(("build", site.name))
        return super().build(site)


class Recorder(Part):
    """Notes every call; keeps a count that must survive a resume."""

    name = "recorder"

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.count = torch.zeros(2, dtype=torch.int64)

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        self.said.append(("assign_ranks",))
        return list(sites)

    def initialize(self, adapter: Delta, W0: Tensor) -> None:
        assert W0.shape == (adapter.site.d, adapter.site.k)
        self.said.append(("initialize", adapter.site.name))

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        if W0 is not None:  # else a checkpoint is being read: only the structure is asked for
            self.said.append(("wrap", adapter.site.name))
        return adapter

    def lr_factors(self) -> dict[str, float]:
        if ("lr_factors",) not in self.said:  # asked for again when the run is described
            self.said.append(("lr_factors",))
        return {"B": 2.0}

    def before_step(self, run: Run) -> None:
        self.said.append(("before_step", run.step))

    def loss(self, run: Run) -> Tensor | None:
        self.said.append(("loss", run.step))
        return None

    def after_backward(self, run: Run) -> None:
        self.said.append(("after_backward", run.step))

    def after_step(self, run: Run) -> None:
        self.said.append(("after_step", run.step))
        self.count += torch.tensor([1, run.step])

    def state(self) -> dict[str, Tensor]:
        self.said.append(("state",))
        return {"count": self.count}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.said.append(("load_state",))
        self.count = state["count"].clone()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder, method = Recorder(), Watched()
    object.__setattr__(method, "said", recorder.said)  # a method is frozen
    runs.add_parts(monkeypatch, recorder, method=method)
    return recorder


def test_hooks_are_called_in_the_documented_order(place: Place, recorder: Recorder) -> None:
    place.train(*KEYS)
    once = [
        ("assign_ranks",),
        *((word, site) for site in SITES for word in ("build", "initialize", "wrap")),
        ("lr_factors",),
    ]
    steps = [(word, step) for step in range(3) for word in STEP]
    assert recorder.said == [*once, *steps, ("state",)]


def test_state_survives_a_resume(place: Place, recorder: Recorder) -> None:
    whole = place.train(*KEYS, "checkpoint.every=1", "checkpoint.keep=9")
    assert recorder.count.tolist() == [3, 0 + 1 + 2]
    assert files.read_tensors(whole / "last/../parts.safetensors")["recorder/count"].tolist() == [3, 3]
    part = runs.cut(whole, 2, place.root / "cut")
    recorder.said.clear()
    recorder.count.zero_()
    place.train(*KEYS, "checkpoint.every=1", out=part.name, resume="last")
    at = recorder.said.index(("load_state",))
    assert recorder.said[at:] == [("load_state",), *((word, 2) for word in STEP), ("state",)]
    assert recorder.count.tolist() == [3, 3]
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


def test_a_planned_rank_is_the_rank_that_is_trained(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    class OnlyFirst(Part):
        name = "only-first"

        def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
            return [replace(sites[0], rank=3)]

    runs.add_parts(monkeypatch, OnlyFirst())
    shapes = {name: tuple(t.shape) for name, t in runs.tensors(place.train(*KEYS)).items() if "lora_A" in name}
    assert [shape[0] for shape in shapes.values()] == [3]


def gradients(run: Run) -> dict[str, Tensor]:
    return {
        f"{site}.{name}": p.grad.clone()
        for site, adapter in run.adapters.items()
        for name, p in adapter.tensors().items()
    }


def test_a_loss_term_adds_exactly_its_own_gradient(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Tensor]] = []
    penalty = Penalty(0.25)
    keys = (*KEYS, "training.max_steps=1", "training.max_grad_norm=none")
    context = At("after_backward", 1, lambda run: found.append(gradients(run)))
    with monkeypatch.context() as patch:
        runs.add_parts(patch, context)
        place.train(*keys, out="without")
    runs.add_parts(monkeypatch, penalty, context)
    place.train(*keys, out="with")
    without, with_term = found
    assert set(penalty.A) < set(without)
    for name, gradient in without.items():
        expected = gradient + 0.25 * penalty.A[name] if name in penalty.A else gradient
        assert torch.allclose(with_term[name], expected, rtol=1e-5, atol=1e-7)


def test_what_each_hook_of_a_step_finds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def trained(run: Run) -> Tensor:
        return torch.cat([p.detach().flatten() for adapter in run.adapters.values() for p in adapter.parameters()])

    def before(run: Run) -> None:
        seen["lr"] = [group["lr"] for group in run.optimizer.param_groups]
        seen["no gradients"] = all(p.grad is None for a in run.adapters.values() for p in a.parameters())
        seen["before"] = trained(run)

    def between(run: Run) -> None:
        seen["norm"] = torch.cat([g.flatten() for g in gradients(run).values()]).norm().item()
        seen["still"] = torch.equal(trained(run), seen["before"])

    def after(run: Run) -> None:
        seen["moved"] = not torch.equal(trained(run), seen["before"])

    parts = (At("before_step", 2, before), At("after_backward", 2, between), At("after_step", 2, after))
    runs.add_parts(monkeypatch, *parts)
    run = place.train(*KEYS, "training.max_grad_norm=0.01")
    record = runs.records(run)[1]
    assert seen["lr"] == [record["lr"]]
    assert seen["no gradients"]
    assert seen["still"]
    assert seen["moved"]
    assert record["grad_norm"] > 0.01  # told as it was before clipping
    assert seen["norm"] == pytest.approx(0.01, rel=1e-3)  # found clipped
