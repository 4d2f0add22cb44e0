"""Every optimiser of the registry: a resumed run is the straight one, its step is the formula, and who is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from runs import Place
from torch import nn

from lrft import registry
from lrft.cli.main import run_command
from lrft.errors import MissingError, RecipeError, UsageError
from lrft.loading.optimizer import rate_hint, refuse_optimizer
from lrft.optim.named_state import grouped, load_state_tensors, set_lr, state_tensors, with_state
from lrft.registry import rooms
from lrft.utils import files

CARDS = registry.declared("optimizers")
# Options that change what state there is.
ALSO: dict[str, list[dict[str, Any]]] = {
    "adamw": [{"implementation": "foreach"}, {"implementation": "fused"}],
    "sgd": [{"momentum": 0.0}, {"nesterov": True}],
    "lion": [{"bits": 8}],
    "ademamix": [{"bits": 8}],
    "adamw-torchao": [{"bits": 4}],
}
PAGED = "paged-adamw"
AVERAGING = "schedule-free-adamw"
EACH = [(name, options) for name in CARDS if name != PAGED for options in ({}, *ALSO.get(name, []))]


def present(name: str) -> None:
    """Skips the test without the package that the optimiser needs."""
    needs = CARDS[name].facts.get("needs", "")
    if needs:
        pytest.importorskip(needs, reason=f"pip install {needs}")


def of(name: str, **options: Any) -> Any:
    present(name)
    return CARDS[name].load()(**CARDS[name].validate(options))


def parameters() -> dict[str, nn.Parameter]:
    """A pair of factors, one of them large enough for a state of 8 bits, a vector and a stack of matrices."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"q.A": (64, 80), "q.B": (5, 3), "q.magnitude": (7,), "k.cores": (2, 3, 4)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def walk(optimizer: torch.optim.Optimizer, trained: dict[str, nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in trained.values():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize(("name", "options"), EACH, ids=[f"{name}{options or ''}" for name, options in EACH])
def test_a_state_read_back_goes_on_in_the_same_bits(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Trust 39. Through a file, into an optimiser whose groups are in another order."""
    trained = parameters()
    straight = of(name, **options).make(grouped(trained, {"B": 2.0}, 0.01, 0.1))
    walk(straight, trained, 0, 3)
    state = state_tensors(straight)
    files.write_tensors(tmp_path / "optimizer.safetensors", state)
    again = {n: nn.Parameter(p.detach().clone()) for n, p in reversed(trained.items())}
    state = {key: value.clone() for key, value in state.items()}
    resumed = of(name, **options).make(grouped(again, {"B": 2.0}, 0.01, 0.1))
    load_state_tensors(resumed, files.read_tensors(tmp_path / "optimizer.safetensors"), with_state(state))
    walk(straight, trained, 3, 6)
    walk(resumed, dict(sorted(again.items(), key=lambda item: list(trained).index(item[0]))), 3, 6)
    for n, p in trained.items():
        assert torch.equal(p, again[n]), n
    assert runs.differing(state_tensors(straight), state_tensors(resumed)) == []
    assert not state or any(not torch.equal(value, state_tensors(straight)[key]) for key, value in state.items())


@pytest.mark.parametrize("name", [name for name in CARDS if name not in (PAGED, "adamw")])
def test_a_run_is_resumed_in_the_same_bits(name: str, place: Place) -> None:
    present(name)
    keys = (f"training.optimizer={name}", "checkpoint.every=3", "adapter.method=dora")
    straight = place.train(*keys, out="straight")
    runs.cut(straight, 3, place.root / "stopped")
    stopped = place.train(*keys, out="stopped", resume="last")
    assert runs.differing(runs.tensors(straight), runs.tensors(stopped)) == []
    assert len(runs.records(straight)) == runs.STEPS


def schedule_free(
    p: torch.Tensor, gradients: list[torch.Tensor], rates: list[float], decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Defazio et al., 2024, algorithm 1, in float64: the point y of the next gradient, and the average x."""
    x = z = y = p
    v, total = torch.zeros_like(p), 0.0
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        v = 0.999 * v + 0.001 * g**2
        z = z - lr * (g / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + decay * y)
        weight = max(rates[:t]) ** 2
        total += weight
        x = (1 - weight / total) * x + weight / total * z
        y = 0.1 * z + 0.9 * x
    return y, x


def formula(name: str, p: torch.Tensor, gradients: list[torch.Tensor], lr: float, decay: float) -> torch.Tensor:
    """The definitions in float64, written out. p and gradients (d, k)."""
    m = v = slow = torch.zeros_like(p)
    row, column = torch.zeros(len(p)).double(), torch.zeros(p.shape[1]).double()
    if name == AVERAGING:
        return schedule_free(p, gradients, [lr] * len(gradients), decay)[0]
    for t, g in enumerate(gradients, 1):
        if name == "sgd":
            m = g + decay * p if t == 1 else 0.9 * m + g + decay * p
            p = p - lr * m
        elif name == "lion":
            p = p * (1 - lr * decay) - lr * (0.9 * m + 0.1 * g).sign()
            m = 0.99 * m + 0.01 * g
        elif name == "adafactor":
            beta = 1 - t**-0.8
            row, column = (beta * row + (1 - beta) * (g**2).mean(1), beta * column + (1 - beta) * (g**2).mean(0))
            u = g / torch.outer(row / row.mean(), column).sqrt()
            u = u / (u.square().mean().sqrt()).clamp_min(1.0)
            rate = min(lr, t**-0.5) * p.square().mean().sqrt().clamp_min(1e-3)
            p = p * (1 - lr * decay) - rate * u
        elif name == "muon":
            m = 0.95 * m + 0.05 * g
            u = 0.05 * g + 0.95 * m
            u = u / u.norm()
            u = u.T if len(u) > u.shape[1] else u
            for _ in range(5):
                s = u @ u.T
                u = 3.4445 * u + (-4.775 * s + 2.0315 * s @ s) @ u
            u = u.T if u.shape != p.shape else u
            p = p * (1 - lr * decay) - lr * 0.2 * max(p.shape) ** 0.5 * u
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            slow = 0.9999 * slow + 0.0001 * g
            mixed = m / (1 - 0.9**t) + (5.0 * slow if name == "ademamix" else 0.0)
            p = p * (1 - lr * decay) - lr * mixed / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return p


# What is rounded: Newton-Schulz iterations to bfloat16, a state to 8 bits.
ROUNDED = {"muon": 0.05, "adamw-8bit": 0.05, "adamw-torchao": 0.05}


@pytest.mark.parametrize("name", [name for name in CARDS if name != PAGED])
def test_steps_are_those_of_the_definition(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(64, 80, generator=generator)
    gradients = [torch.randn(64, 80, generator=generator) for _ in range(4)]
    p = nn.Parameter(start.clone())
    optimizer = of(name).make(grouped({"q.A": p}, {}, 0.01, 0.1))
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    wanted = formula(name, start.double(), [g.double() for g in gradients], 0.01, 0.1)
    moved = (wanted - start).norm()
    assert (p - wanted).norm() / moved < ROUNDED.get(name, 1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_state_in_parts_is_the_state_of_torchao(bits: int) -> None:
    """Its own optimiser, under rates that change, makes the same steps; between them tensors are plain."""
    optim = pytest.importorskip("torchao.optim", reason="pip install torchao")
    ours, theirs = parameters(), parameters()
    declared = of("adamw-torchao", bits=bits).make(grouped(ours, {}, 0.01, 0.1))
    groups = [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for p in theirs.values()]
    own = {4: optim.AdamW4bit, 8: optim.AdamW8bit}[bits](groups, lr=0.01)
    with torch.compiler.set_stance("force_eager"):
        for step in range(4):
            set_lr(declared, 0.01 / (step + 1))
            for group in own.param_groups:
                group["lr"].fill_(0.01 / (step + 1))
            walk(declared, ours, step, step + 1)
            walk(own, theirs, step, step + 1)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    kept = state_tensors(declared)
    assert {type(value) for value in kept.values()} == {torch.Tensor}
    assert {key for key in kept if key.endswith("codes")} == {"q.A/exp_avg_codes", "q.A/exp_avg_sq_codes"}
    assert kept["q.A/exp_avg_codes"].numel() == 64 * 80 * bits // 8


def test_the_average_is_that_of_the_definition_and_of_the_package() -> None:
    """Under a warm-up, which the package has as an option of its own. Behind the context the bits are as before."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(64, 80, generator=generator)
    gradients = [torch.randn(64, 80, generator=generator) for _ in range(6)]
    rates = [0.01 * min(1.0, (k + 1) / 4) for k in range(6)]
    declared = of(AVERAGING)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = declared.make(grouped({"q.A": ours}, {}, 0.01, 0.1))
    package = pytest.importorskip("schedulefree").AdamWScheduleFree(
        [{"params": [theirs], "weight_decay": 0.1}], lr=0.01, warmup_steps=4, foreach=False
    )
    package.train()
    for g, rate in zip(gradients, rates, strict=True):
        ours.grad, theirs.grad = g.clone(), g.clone()
        set_lr(optimizer, rate)
        optimizer.step()
        package.step()
    trained = ours.detach().clone()
    y, x = schedule_free(start.double(), [g.double() for g in gradients], rates, 0.1)
    package.eval()
    with declared.averaged(optimizer):
        assert torch.equal(ours, theirs)
        assert (ours - x).norm() / (x - start).norm() < 1e-4
        assert (ours - y).norm() / (x - start).norm() > 1e-2
    assert torch.equal(ours, trained)
    assert (ours - y).norm() / (x - start).norm() < 1e-4


def test_looking_at_the_average_changes_no_bit_of_training(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluations measure what is saved, and a run without them ends in the same tensors."""
    present(AVERAGING)
    keys = (f"training.optimizer={AVERAGING}", "evaluation.max_new_tokens=2")
    seldom = place.train(*keys, out="seldom")
    often = place.train(*keys, "evaluation.every=1", "evaluation.samples=1", "checkpoint.every=1", out="often")
    assert runs.differing(runs.tensors(seldom), runs.tensors(often)) == []
    rows = str(place.root / "validation.jsonl")
    capsys.readouterr()
    assert run_command(["eval", str(often / "last"), "--data", rows, "--samples", "0", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["loss"]
    assert measured == pytest.approx(runs.records(often, "eval")[-1]["loss"], rel=1e-6)


def test_its_schedule_is_constant(place: Place) -> None:
    named = f"training.optimizer={AVERAGING}"
    assert place.recipe(named).training.lr_scheduler.name == "constant"
    assert place.recipe(named).declared()["training.lr_scheduler"][1] == f"default of {AVERAGING}"
    assert place.recipe(named, "training.lr_scheduler=constant", "training.warmup_steps=3").training.warmup_steps == 3
    for schedule in ("cosine", "{wsd: {decay_ratio: 0.1}}"):
        with pytest.raises(RecipeError) as refused:
            place.recipe(named, f"training.lr_scheduler={schedule}")
        assert f"{AVERAGING} takes constant, with or without a warm-up; got " in str(refused.value)


def test_methods_that_write_to_trained_tensors_are_refused_beside_two_points(place: Place) -> None:
    for method, refused in (("relora", True), ("sora", True), ("dora", False), ("singlora", False), ("lora-fa", False)):
        named = place.recipe(f"training.optimizer={AVERAGING}", f"adapter.method={method}")
        if not refused:
            refuse_optimizer(named, gpu=False)
            continue
        with pytest.raises(RecipeError, match=f"{method} acts on trained tensors between steps"):
            refuse_optimizer(named, gpu=False)


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    shapes = {
        "layers.0.q.A": (4, 6),
        "layers.0.q.magnitude": (5,),
        "embed_tokens.B": (6, 4),
        "layers.0.cores": (2, 3, 4),
    }
    trained = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    optimizer = of("muon").make(grouped(trained, {}, 0.01, 0.0))
    walk(optimizer, trained, 0, 1)
    entries = {key for key in state_tensors(optimizer) if not key.endswith("/step")}
    assert entries == {"layers.0.q.A/momentum_buffer"} | {
        f"{name}/{mean}" for name in list(shapes)[1:] for mean in ("exp_avg", "exp_avg_sq")
    }


@pytest.mark.parametrize(
    ("method", "optimizer", "said"),
    [
        ("galore", "muon", "galore brings its own optimiser, which muon cannot replace; leave it out"),
        ("lora-pro", "lion", "lora-pro makes Adam's step of the weight, which lion does not have; use adamw"),
        (
            "relora",
            "adamw-8bit",
            "relora edits single numbers of the optimiser's state, which adamw-8bit keeps in blocks",
        ),
    ],
)
def test_who_needs_another_optimiser_is_refused(place: Place, method: str, optimizer: str, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        place.recipe(f"adapter.method={method}", f"training.optimizer={optimizer}")
    assert said in str(refused.value)


@pytest.mark.parametrize("spelt", [PAGED, "{lion: {paged: true}}", "{ademamix: {paged: true}}"])
def test_paging_without_a_gpu_is_refused(place: Place, spelt: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="there is no GPU"):
        place.train(f"training.optimizer={spelt}", "data.train=unread.jsonl")
    assert not (place.root / "run").exists()
    assert run_command(["check", str(place.root / "recipe.yaml"), f"training.optimizer={spelt}"]) == 2


def test_a_missing_package_is_named_before_anything_is_loaded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "find_spec", lambda name: None)
    with pytest.raises(MissingError) as refused:
        place.train("training.optimizer=lion", "model=nowhere")
    assert refused.value.lines()[-1].endswith("pip install bitsandbytes")
    with pytest.raises(MissingError) as refused:
        place.train("training.optimizer=lion", "logging.report_to=[wandb, mlflow]")
    assert refused.value.lines()[-1].endswith("pip install bitsandbytes wandb mlflow")
    assert [line.split("  ")[1].split(":")[0] for line in refused.value.message.splitlines()] == [
        *("training.optimizer", "logging.report_to", "logging.report_to")
    ]


def test_a_default_rate_beside_an_optimiser_with_others_is_said(place: Place) -> None:
    for optimizer, said in (("adafactor", 1), ("lion", 1), ("adamw", 0), ("muon", 0)):
        named = f"training.optimizer={optimizer}"
        assert rate_hint(place.recipe(named)) == []
        hints = rate_hint(place.recipe(named, "~training.learning_rate"))
        assert len(hints) == said
        assert all(f"a default for adamw; {optimizer} takes" in hint for hint in hints)


def test_methods_that_rest_or_restart_go_with_other_states(place: Place) -> None:
    """A state with plain numbers and codes is forgotten, put back and copied."""
    for method, optimizer in (("lte", "adamw-8bit"), ("relora", "muon"), ("diffora", "lion")):
        run = place.train(f"adapter.method={method}", f"training.optimizer={optimizer}", out=f"{method}")
        assert len(runs.records(run)) == runs.STEPS


def test_plan_counts_what_the_optimiser_keeps() -> None:
    p = nn.Parameter(torch.zeros(64, 80))
    for name, options in EACH:
        optimizer = of(name, **options).make(grouped({"q.A": p}, {}, 0.0, 0.0))
        p.grad = torch.ones_like(p)
        optimizer.step()
        kept = sum(
            value.numel() * value.element_size()
            for key, value in state_tensors(optimizer).items()
            if value.numel() > 1 and "qmap" not in key
        )
        stated = of(name, **options).state_bytes(p)
        assert stated == pytest.approx(kept, rel=0.2), name


def test_check_accepts_each_by_name(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for name in CARDS:
        assert run_command(["check", "--static", str(place.root / "recipe.yaml"), f"training.optimizer={name}"]) == 0
