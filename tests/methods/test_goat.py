"""GOAT against loops over tokens and experts, its penalty under every kind of checkpointing, and runs."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import lrft
from lrft.adapters import compose, gradient_checkpointing
from lrft.adapters.adapter import Site
from lrft.adapters.part import Run
from lrft.cli.main import run_command
from lrft.errors import RecipeError
from lrft.methods.goat import Goat
from lrft.objectives.sft import TokenLoss

D, K = 14, 20
EVERY_FORM = pytest.mark.parametrize(
    "options",
    [
        {"experts": 4},
        {"experts": 4, "top": 4},
        {"experts": 4, "top": 1},
        {"experts": 4, "top": 3, "offset": "expected"},
        {"experts": 2, "init": "lora"},
        {"experts": 1, "top": 1},
    ],
    ids=str,
)


def layer(options: dict[str, Any], *, size: float = 0.3, transposed: bool = False, **more: Any) -> tuple[Any, Any]:
    """(model of one float64 layer, its adapter), the trained tensors away from their start."""
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(D, K) if transposed else nn.Linear(K, D)).double()
    nn.init.normal_(model[0].bias)
    nn.init.normal_(model[0].weight)
    attached = lrft.attach(model, {"method": {"goat": options}, "rank": 8, **more})
    if size:
        tiny.disturb(list(attached.trained().values()), size=size)
    return model, attached.modules["0"]


def inputs(*shape: int, seed: int = 4) -> Tensor:
    return torch.randn(*shape, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def chosen(row: Tensor, router: Tensor, top: int) -> dict[int, Tensor]:
    """expert -> its weight, for one token."""
    p = (router @ row).softmax(0)
    best = sorted(range(len(router)), key=lambda i: -p[i].item())[:top]
    return {i: p[i] / sum(p[j] for j in best) for i in best}


def by_hand(adapter: Any, row: Tensor, dropped: Tensor | None = None) -> Tensor:
    """What the experts add for one token."""
    dropped = row if dropped is None else dropped
    method, per = adapter.method, adapter.site.rank // adapter.method.experts
    experts = [slice(i * per, (i + 1) * per) for i in range(method.experts)]
    weights = chosen(row, adapter.router, method.top)
    out = torch.zeros(D, dtype=torch.float64)
    for i, w in weights.items():
        out = out + w * adapter.B[:, experts[i]] @ (adapter.A[experts[i]] @ dropped)
    if method.init == "svd":
        starts = weights if method.offset == "routed" else dict.fromkeys(range(method.experts), 1 / method.experts)
        for i, w in starts.items():
            out = out - w * adapter.B0[:, experts[i]] @ (adapter.A0[experts[i]] @ dropped)
    return adapter.site.scale * out


@EVERY_FORM
@pytest.mark.parametrize("transposed", [False, True])
def test_output_and_gradients_are_those_of_a_loop_over_tokens_and_experts(
    options: dict[str, Any], transposed: bool
) -> None:
    model, adapter = layer(options, transposed=transposed, alpha=3.0)
    assert adapter.site.scale == pytest.approx(3.0 * adapter.method.experts / 8)
    assert any(p.abs().max() > 0.1 for p in (adapter.A, adapter.B))
    x = inputs(3, 5).requires_grad_()
    W = model[0].base.weight.T if transposed else model[0].base.weight
    slow = x @ W.T + model[0].bias
    slow = slow + torch.stack([torch.stack([by_hand(adapter, row) for row in rows]) for rows in x])
    fast = model(x)
    assert torch.allclose(fast, slow, rtol=1e-10, atol=1e-10)
    assert torch.allclose(adapter.eager(x, x, model[0].base), slow, rtol=1e-10, atol=1e-10)
    wanted = [x, *(p for p in adapter.parameters() if p.requires_grad)]
    assert len(wanted) == (3 if adapter.method.experts == 1 else 4)
    slope = torch.randn(fast.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    expected = torch.autograd.grad(slow, wanted, slope, allow_unused=True)
    for one, other in zip(torch.autograd.grad(fast, wanted, slope), expected, strict=True):
        assert torch.allclose(one, torch.zeros_like(one) if other is None else other, rtol=1e-8, atol=1e-9)


@EVERY_FORM
@torch.no_grad()
def test_the_start(options: dict[str, Any]) -> None:
    """The first triplets of each segment, over 10; what is subtracted is what is there."""
    model, adapter = layer(options, size=0)
    method, W, x = adapter.method, model[0].base.weight, inputs(50)
    base = model[0].base(x)
    if method.offset == "routed":
        assert torch.equal(model(x), base), "exactly"
    else:
        assert not torch.allclose(model(x), base, atol=1e-2)
        mean = -by_hand(adapter, x[0]) + by_hand_without_offset(adapter, x[0])
        whole = adapter.site.scale / method.experts * adapter.B @ (adapter.A @ x[0])
        assert torch.allclose(mean, whole, atol=1e-12)
    assert adapter.router.abs().max() <= 1 / math.sqrt(K), "Kaiming's bound"
    assert adapter.router.std() == pytest.approx(1 / math.sqrt(3 * K), rel=0.25)
    if method.init == "lora":
        assert not adapter.B.any()
        assert not hasattr(adapter, "A0")
        assert adapter.A.std() == pytest.approx(1 / math.sqrt(3 * K), rel=0.25)
        assert adapter.A.abs().max() <= 1 / math.sqrt(K)
        return
    assert torch.equal(adapter.A, adapter.A0)
    assert torch.equal(adapter.B, adapter.B0)
    assert not any(p.requires_grad for p in (adapter.A0, adapter.B0))
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    per, length = 8 // method.experts, 14 // method.experts
    for i in range(method.experts):
        mine, at = slice(i * per, (i + 1) * per), slice(i * length, i * length + per)
        expert = adapter.site.scale * adapter.B[:, mine] @ adapter.A[mine]
        assert torch.allclose(expert, U[:, at] @ torch.diag(S[at]) @ Vh[at] / 10, atol=1e-10)
        assert torch.allclose(adapter.A[mine].norm(dim=1), adapter.B[:, mine].norm(dim=0), rtol=1e-8)


def by_hand_without_offset(adapter: Any, row: Tensor) -> Tensor:
    per = adapter.site.rank // adapter.method.experts
    weights = chosen(row, adapter.router, adapter.method.top)
    parts = [
        w * adapter.B[:, i * per : (i + 1) * per] @ (adapter.A[i * per : (i + 1) * per] @ row)
        for i, w in weights.items()
    ]
    return adapter.site.scale * torch.stack(parts).sum(0)


@torch.no_grad()
def test_the_released_offset_is_the_base_for_a_router_without_preference_over_all_experts() -> None:
    model, adapter = layer({"experts": 4, "top": 4, "offset": "expected"}, size=0)
    adapter.router.zero_()
    x = inputs(50)
    assert torch.allclose(model(x), model[0].base(x), atol=1e-10)


def test_one_expert_without_svd_is_lora() -> None:
    model, adapter = layer({"experts": 1, "top": 1, "init": "lora"})
    other = nn.Sequential(nn.Linear(K, D)).double()
    other[0].load_state_dict(model[0].base.state_dict())
    lora: Any = lrft.attach(other, {"method": "lora", "rank": 8}).modules["0"]
    lora.load({"A": adapter.A, "B": adapter.B})
    assert torch.allclose(model(inputs(7)), other(inputs(7)), atol=1e-12)
    assert not adapter.router.requires_grad
    assert lora.site.scale == adapter.site.scale == 2.0


def test_every_token_has_weights_that_sum_to_one_and_its_own_output() -> None:
    model, adapter = layer({"experts": 4})
    x = inputs(40)
    p, kept = adapter.route(x)
    assert torch.allclose(p.sum(-1), torch.ones(40, dtype=torch.float64))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.sum(-1).tolist() == [2.0] * 40
    assert len({tuple(row.tolist()) for row in kept}) > 2, "tokens choose differently"
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(model(x)[order], model(x[order]), atol=1e-12)


def test_dropout_is_for_the_experts_not_for_the_router() -> None:
    model, adapter = layer({"experts": 4}, dropout=0.5)
    model.train()
    x = inputs(9)
    torch.manual_seed(5)
    y = model(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.5)
    added = torch.stack([by_hand(adapter, row, low) for row, low in zip(x, dropped, strict=True)])
    assert torch.allclose(y, model[0].base(x) + added, atol=1e-10)


def test_the_theoretical_factor() -> None:
    sizes = {"method": {"goat": {"experts": 4, "eta": 0.5}}, "rank": 8, "overrides": {"1": {"rank": 12}}}
    attached = lrft.attach(nn.Sequential(nn.Linear(K, D), nn.Linear(D, 30)), sizes)
    assert [site.scale for site in attached.sites] == pytest.approx(
        [math.sqrt(3 * 0.5 * 20 / 2), math.sqrt(1.5 * 14 / 3)]
    )
    plain = lrft.attach(nn.Sequential(nn.Linear(K, D)), {"method": {"goat": {"experts": 4}}, "rank": 8})
    assert plain.sites[0].scale == 8.0
    U, S, Vh = torch.linalg.svd(attached.layers()["0"].base.weight)
    first = attached.modules["0"].site.scale * attached.modules["0"].B0[:, :1] @ attached.modules["0"].A0[:1]
    assert torch.allclose(first, S[0] * U[:, :1] @ Vh[:1] / 10, atol=1e-5), "the start knows the factor"


def test_with_the_theoretical_factor_the_first_step_of_lora_is_that_of_full_training() -> None:
    """E[s^2 A' A] = eta I for A of Kaiming's rule: sections 3.3 and 3.4 of the paper."""
    total = torch.zeros(K, K)
    for seed in range(400):
        site = Goat(experts=2, init="lora", eta=0.5).assign_ranks([Site("x", D, K, 8)])[0]
        torch.manual_seed(seed)
        A = Goat(experts=2, init="lora").build(site).A.detach()[:4]
        total += site.scale**2 * A.T @ A / 400
    assert torch.allclose(total, 0.5 * torch.eye(K), atol=0.06)


def penalty_by_hand(p: Tensor, top: int) -> float:
    """E sum f P of probabilities (n, E), counted."""
    n, E = p.shape
    picks = [sorted(range(E), key=lambda i, row=row: -row[i].item())[:top] for row in p]
    return sum(E * sum(i in pick for pick in picks) / n * sum(row[i].item() for row in p) / n for i in range(E))


def balance(attached: Any, part: Any) -> Tensor | None:
    run = Run(0, 9, attached.model, attached.modules, None, 0, lambda t: t)  # type: ignore[arg-type]
    return part.output_loss(run, None)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_the_penalty_is_counted_over_all_tokens_and_layers(top: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(K, D), nn.Tanh(), nn.Linear(D, 9)).double().eval()
    options = {"experts": 4, "top": top, "balance": 0.7}
    attached = lrft.attach(model, {"method": {"goat": options}, "rank": 4})
    tiny.disturb(list(attached.trained().values()), size=0.5)
    part = compose.compose([("goat", options)]).method
    assert balance(attached, part) is None, "no pass, no penalty"
    x = inputs(3, 7)
    seen = [x, model[1](model[0](x))]
    routers = [attached.modules[name].router for name in ("0", "2")]
    assert balance(attached, part) is None, "those were answers, not training"
    model.train()
    y = model(x)
    found = balance(attached, part)
    assert found is not None
    tables = [(h.flatten(0, 1) @ router.T).softmax(-1) for h, router in zip(seen, routers, strict=True)]
    assert found.item() == pytest.approx(0.7 * sum(penalty_by_hand(p, top) for p in tables), rel=1e-9)
    # Its gradient sees the probabilities, not the choice; the second layer's reaches the first layer's tensors.
    slow = [(p.mean(0) * p.new_tensor(shares(p, top))).sum() * 0.7 * 4 for p in tables]
    wanted = [*routers, attached.modules["0"].A, attached.modules["0"].B]
    expected = torch.autograd.grad(torch.stack(slow).sum(), wanted, retain_graph=True)
    for one, other in zip(torch.autograd.grad(found, wanted, retain_graph=True), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)
        assert other.any()
    assert balance(attached, part) is None, "asked for twice"
    with torch.no_grad():
        model(x)
    assert balance(attached, part) is None, "nothing to be trained in that pass"
    y = model(x)
    assert attached.modules["0"].note() is not None
    del y
    assert balance(attached, part) is None, "the graph of that pass is gone"


def shares(p: Tensor, top: int) -> list[float]:
    picks = [sorted(range(p.shape[1]), key=lambda i, row=row: -row[i].item())[:top] for row in p]
    return [sum(i in pick for pick in picks) / len(p) for i in range(p.shape[1])]


@pytest.mark.parametrize("top", [1, 2, 4])
def test_the_penalty_of_a_router_without_preference_is_top(top: int) -> None:
    model, adapter = layer({"experts": 4, "top": top}, size=0)
    with torch.no_grad():
        adapter.router.zero_()
    y = model.train()(inputs(20))
    assert adapter.note().item() == pytest.approx(top)
    assert y.requires_grad


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_penalty_and_gradients_are_the_same_under_every_kind_of_checkpointing(dropout: float) -> None:
    """Two micro-batches: passes are repeated or played back within the backward pass of each."""
    found = []
    for kind in ("none", "light", "medium", "full"):
        model = tiny.make("llama").train()
        options = {"experts": 2, "top": 1, "balance": 0.5}
        attached = lrft.attach(model, {"method": {"goat": options}, "rank": 4, "dropout": dropout})
        tiny.disturb(list(attached.trained().values()))
        part = compose.compose([("goat", options)]).method
        if kind != "none":
            gradient_checkpointing.checkpoint(model, kind)
        losses = TokenLoss(model).train()
        run = Run(0, 9, model, attached.modules, None, 0, lambda t: t)  # type: ignore[arg-type]
        terms = []

        def extra(outputs: Any, run: Run = run, part: Any = part, terms: list[Any] = terms) -> Any:
            term = part.output_loss(run, outputs)
            terms.append(term.item())
            return term

        losses.extra = extra
        total = 0.0
        for seed in (1, 2):
            torch.manual_seed(seed)
            ids = tiny.tokens(seed=seed)
            loss = losses({"input_ids": ids, "labels": ids})
            loss.backward()
            total += loss.item()
        gradients = {name: p.grad.clone() for name, p in attached.trained().items()}
        assert all(adapter.note() is None for adapter in attached.modules.values()), "nothing is held"
        found.append((terms, total, gradients))
    (terms, total, gradients), *others = found
    assert len(terms) == 2
    assert all(0.5 * 14 * 0.9 < term < 0.5 * 14 * 2 for term in terms), "fourteen layers, each from 1 to 2"
    for again in others:
        assert again[0] == pytest.approx(terms, rel=1e-6)
        assert again[1] == pytest.approx(total, rel=1e-6)
        for name, p in gradients.items():
            assert torch.allclose(p, again[2][name], rtol=1e-4, atol=1e-5), name


def test_the_penalty_moves_gradients_through_a_checkpoint_as_without() -> None:
    """The last test would pass if the penalty had no gradient at all."""
    gradients = []
    for weight in (1e-9, 0.5):
        model, ids = tiny.make("llama").train(), tiny.tokens()
        options = {"experts": 2, "top": 1, "balance": weight}
        attached = lrft.attach(model, {"method": {"goat": options}, "rank": 4})
        tiny.disturb(list(attached.trained().values()))
        gradient_checkpointing.checkpoint(model, "full")
        losses = TokenLoss(model).train()
        part = compose.compose([("goat", options)]).method
        run = Run(0, 9, model, attached.modules, None, 0, lambda t: t)  # type: ignore[arg-type]
        losses.extra = lambda outputs, part=part, run=run: part.output_loss(run, outputs)
        losses({"input_ids": ids, "labels": ids}).backward()
        gradients.append({name: p.grad for name, p in attached.trained().items()})
    without, with_it = gradients
    last = max(name for name in with_it if name.endswith("1.mlp.down_proj.router"))
    assert not torch.allclose(without[last], with_it[last], rtol=1e-3)
    assert not torch.allclose(
        without["model.layers.0.self_attn.q_proj.A"], with_it["model.layers.0.self_attn.q_proj.A"]
    )


def test_under_full_checkpointing_no_repeated_pass_keeps_its_inputs() -> None:
    """What a repeated pass notes is gone with it, so that the inputs of only one block live at a time."""
    model, ids = tiny.make("llama").train(), tiny.tokens()
    attached = lrft.attach(model, {"method": {"goat": {"experts": 2}}, "rank": 4})
    gradient_checkpointing.checkpoint(model, "full")
    alive: list[int] = []

    def context(_: Any) -> None:  # the first block's output has its gradient: the second block is done
        alive.append(sum(a.note() is not None for n, a in attached.modules.items() if "layers.1" in n))

    def watch(_: Any, __: Any, out: Tensor) -> None:
        if not alive:
            out.register_hook(context)

    model.model.layers[0].register_forward_hook(watch)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert all(adapter.note() is not None for adapter in attached.modules.values())
    loss.backward()
    # A repeated pass may be broken off in its last layer, whose note is then still that of the first pass.
    assert len(alive) == 1
    assert alive[0] <= 1
    del loss
    gc.collect()
    assert not any(adapter.note() is not None for adapter in attached.modules.values())


def test_it_has_no_weight_and_says_so() -> None:
    _, adapter = layer({"experts": 4})
    assert not adapter.mergeable
    assert adapter.peft() is None
    with pytest.raises(TypeError, match="not mergeable"):
        adapter.delta_weight()


@pytest.mark.parametrize(
    ("options", "rank", "said"),
    [
        ({}, 12, "8 experts do not divide rank 12"),
        ({"experts": 2, "top": 3}, 4, "choose 3 of 2 experts"),
        ({"experts": 2, "top": 1, "balance": 0.0}, 4, "learns nothing with top 1 and balance 0"),
        ({"experts": 2}, 16, "14 x 20 layer has 14 singular vectors: lower rank 16"),
        ({"experts": 4}, 16, "lower rank 16"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], rank: int, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        lrft.attach(nn.Sequential(nn.Linear(K, D)), {"method": {"goat": options}, "rank": rank})
    lrft.attach(nn.Sequential(nn.Linear(K, D)), {"method": {"goat": {"experts": 2, "init": "lora"}}, "rank": 16})


@pytest.mark.parametrize("other", ["pissa", "dora", "lora+", "rslora", "prilora", "lora"])
def test_what_does_not_go_with_it_is_refused(other: str) -> None:
    with pytest.raises(RecipeError):
        lrft.attach(nn.Sequential(nn.Linear(K, D)), {"method": ["goat", other], "rank": 8})


KEYS = ("adapter.method={goat: {experts: 2}}", "checkpoint.every=2", "checkpoint.keep=9", "adapter.dropout=0.1")


def said_by(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = run_command(words)
    told = capsys.readouterr()
    return code, told.out + told.err


def test_a_run_tells_its_penalty_stays_an_adapter_and_resumes_exactly(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = place.train(*KEYS)
    layers = 14
    for record in runs.records(whole):
        assert record["regularisation"] / 1e-3 == pytest.approx(2 * layers), (
            "all experts are chosen: f is 1, P sums to 1"
        )
    plain = place.train("adapter.method={goat: {experts: 2, balance: 0.0}}", "adapter.dropout=0.1", out="plain")
    assert "regularisation" not in runs.records(plain)[0] or not runs.records(plain)[0]["regularisation"]
    assert runs.records(plain)[0]["loss"] == pytest.approx(runs.records(whole)[0]["loss"], rel=1e-6)
    for step in (2, 4):
        part = runs.cut(whole, step, place.root / f"cut-{step}")
        place.train(*KEYS, out=part.name, resume="last")
        assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []
    facts = json.loads((whole / "run.json").read_text())
    assert facts["adapter"]["exports to"] == "not mergeable: use as an adapter"
    assert not facts["warnings"]
    code, said = said_by(["merge", str(whole)], capsys)
    assert code == 2
    assert "goat: not mergeable (its output is not linear in the layer's input)" in said
    assert "lrft eval" in said
    assert "Traceback" not in said
    assert not (whole / "merged").exists()
    code, said = said_by(["verify", str(whole)], capsys)
    assert code == 0
    assert "this adapter is not mergeable" in said
    assert "0 tensors differ" in said
    code, said = said_by(["eval", str(whole), "--data", str(place.root / "validation.jsonl")], capsys)
    assert code == 0


def test_the_released_offset_says_that_it_does_not_start_as_the_base(place: Place) -> None:
    words = "adapter.method={goat: {experts: 2, offset: expected}}"
    run = place.train(words, "training.max_steps=1")
    (warning,) = json.loads((run / "run.json").read_text())["warnings"]
    assert "the initialised adapter changes the model's output" in warning


@pytest.mark.parametrize("kind", ["light", "medium", "full"])
def test_runs_with_checkpointing_are_the_run(place: Place, kind: str) -> None:
    keys = ("adapter.method={goat: {experts: 4, balance: 0.3}}", "training.max_steps=3")
    one = place.train(*keys)
    two = place.train(*keys, f"training.gradient_checkpointing={kind}", out="again")
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-4
    for a, b in zip(runs.records(one), runs.records(two), strict=True):
        assert a["regularisation"] == pytest.approx(b["regularisation"], rel=1e-5)
    assert Path(two).is_dir()
