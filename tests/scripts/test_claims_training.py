"""Claims of how training goes: what is measured of their runs, and the rules by which they are judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from paper_claims.first_step import FirstStep, cosine, first_step
from paper_claims.papers import CLAIMS, alignment
from paper_claims.papers.lora_plus import first_at, steps_to_the_end_of
from torch import Tensor

from lrft.utils import files

JUDGE = {claim.name: claim.judge for claim in CLAIMS}
METHODS = ("lora", "[lora-ga, rslora]", "[lora-one, rslora]")
GAMMA = 128.0
"""of lora-one"""


# --- the first step ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> runs.Place:
    return runs.Place.make(tmp_path_factory.mktemp("first-step"))


@pytest.fixture(scope="module")
def stepped(place: runs.Place) -> Callable[..., tuple[Path, FirstStep]]:
    """(run folder, its first step) of a method, after one step on some of the ten rows."""

    @cache
    def made(method: str, rows: int = 4) -> tuple[Path, FirstStep]:
        wanted = (f"adapter.method={method}", "training.max_steps=1", "training.warmup_steps=0")
        name = "".join(sign for sign in method if sign.isalnum())
        size = (f"training.global_batch_size={rows}", "training.learning_rate=1e-4")
        folder = place.train(*wanted, *size, out=f"{name}-{rows}")
        return folder, first_step(folder)

    return made


def near(a: Tensor, b: Tensor, share: float) -> bool:
    return bool((a - b).norm() <= share * b.norm())


@pytest.mark.parametrize("method", METHODS)
def test_factors_see_the_whole_gradient(stepped: Callable[..., Any], method: str) -> None:
    """dA = s B' G and dB = s G A', with G of torch's own pass over the model without adapters."""
    folder, step = stepped(method)
    saved = starts(folder)
    for name, (A, B, s) in saved.items():
        G = step.gradient[name]
        assert near(step.descent[name], -(s**2) * (B @ B.T @ G + G @ A.T @ A), 1e-3), name


def starts(folder: Path) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and the factor of each site before the first step."""
    from lrft import recipe
    from lrft.training.setup import set_up
    from lrft.training.state import Options

    adapters = set_up(recipe.load(folder / "resolved.yaml"), Options(quiet=True)).adapted.attached.modules
    pairs: dict[str, Any] = {name: getattr(adapter, "inner", adapter) for name, adapter in adapters.items()}
    return {name: (p.A.detach().double(), p.B.detach().double(), p.site.scale) for name, p in pairs.items()}


@pytest.mark.parametrize("method", METHODS)
def test_what_the_optimiser_made_is_what_peft_would_read(stepped: Callable[..., Any], method: str) -> None:
    folder, step = stepped(method)
    tensors = files.read_tensors(folder / "last" / "adapter_model.safetensors")
    config = files.read_json(folder / "last" / "adapter_config.json")
    s = config["lora_alpha"] / config["r"]
    for name, start in starts(folder).items():
        A, B = (tensors[f"base_model.model.{name}.lora_{factor}.weight"].double() for factor in "AB")
        whole = s * B @ A
        assert near(step.whole[name], whole, 1e-3)
        if "lora-one" in method:
            first_A, first_B, scale = start
            before = scale * first_B @ first_A
            assert torch.linalg.matrix_norm(before, 2).item() == pytest.approx(scale / GAMMA, rel=1e-4)
            assert near(step.made[name], whole - before, 1e-3)
        else:
            assert near(step.made[name], whole, 1e-3), "the start is the base"


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_taken_where_the_run_starts(stepped: Callable[..., Any], method: str) -> None:
    (_, step), (_, plain) = stepped(method), stepped("lora")
    for name, base in plain.gradient.items():
        assert near(step.at_base[name], base, 1e-4), "the same rows, and lora starts as the base"
        assert near(step.gradient[name], base, 1e-4) == ("lora-one" not in method)


def test_all_rows_are_all_rows(stepped: Callable[..., Any]) -> None:
    _, whole = stepped("lora", 10)
    _, part = stepped("lora")
    for name in whole.gradient:
        assert near(whole.all_rows[name], whole.gradient[name], 1e-4), "the step is of all ten"
        assert near(part.all_rows[name], whole.all_rows[name], 1e-4), "the start of lora is the base for both"
        assert not near(part.gradient[name], part.all_rows[name], 0.1)


def test_measures_ask_for_the_step_by_name(stepped: Callable[..., Any]) -> None:
    folder, step = stepped("[lora-one, rslora]")
    found = {measure.name: measure.of(str(folder), "") for measure in alignment.CLAIM.measures}
    assert found == pytest.approx(
        {
            "descent": cosine(step.descent, step.gradient),
            "all_rows": cosine(step.descent, step.all_rows),
            "made": cosine(step.made, step.gradient),
            "whole": cosine(step.whole, step.at_base),
        }
    )
    assert len(set(found.values())) == 4


def test_cosine_of_a_step_down() -> None:
    g = {"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([[0.0], [4.0]])}
    assert cosine({name: -0.1 * value for name, value in g.items()}, g) == pytest.approx(1)
    assert cosine(g, g) == pytest.approx(-1), "up"
    assert cosine({"a": -g["a"], "b": 0 * g["b"]}, g) == pytest.approx(0.6), "all layers are one vector"
    assert cosine({"b": -g["b"], "a": -g["a"]}, g) == pytest.approx(1), "in whatever order"


# --- steps ---


def evaluations(folder: Path, losses: list[float]) -> str:
    """A run folder with an evaluation every 10 steps, and steps between."""
    folder.mkdir()
    lines = []
    for n, loss in enumerate(losses, start=1):
        lines += [
            f'{{"kind": "step", "step": {10 * n}, "loss": 0.0}}',
            f'{{"kind": "eval", "step": {10 * n}, "loss": {loss}}}',
        ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def test_steps_to_the_last_loss_of_another(tmp_path: Path) -> None:
    lora = evaluations(tmp_path / "lora", [3.0, 1.5, 2.0])
    assert steps_to_the_end_of(evaluations(tmp_path / "a", [2.5, 2.0, 1.0]), lora) == 20, "no worse is enough"
    assert steps_to_the_end_of(evaluations(tmp_path / "b", [1.9, 2.5, 2.4]), lora) == 10, "it may rise again"
    assert steps_to_the_end_of(evaluations(tmp_path / "c", [4.0, 3.0, 2.1]), lora) == 31, "never: one step too many"
    assert first_at([{"step": 5, "loss": 2.0}, {"step": 9, "loss": 1.0}], 1.0) == 9


# --- judgements ---


def by_seed(values: list[float]) -> dict[str, float]:
    return {str(seed): value for seed, value in enumerate(values, start=1)}


def measured(name: str, **runs_: list[float]) -> dict[str, Any]:
    found = {run.replace("_", "-"): by_seed(values) for run, values in runs_.items()}
    return {"baseline": "lora", "measured": {name: found}}


def ends(**runs_: list[float]) -> dict[str, Any]:
    rows = [{"run": run.replace("_", "-"), "values": by_seed(values)} for run, values in runs_.items()]
    return {"baseline": "lora", "methods": rows}


def test_sooner_at_the_end_of_lora() -> None:
    def shows(ratio_4: list[float], ratio_16: list[float]) -> bool:
        facts = measured("steps", lora=[99, 99], ratio_4=ratio_4, ratio_16=ratio_16)
        return JUDGE["lora-plus"](facts).shows

    assert shows([66, 66], [100, 100]), "one ratio is enough"
    assert shows([100, 100], [30, 66])
    assert not shows([60, 67], [67, 60]), "each is too late on one seed"
    assert not shows([99, 99], [100, 100])
    said = JUDGE["lora-plus"](measured("steps", lora=[99, 99], ratio_4=[66, 100])).figures
    assert said.endswith("ratio-4 66, never.")


def test_further_in_the_first_steps() -> None:
    assert JUDGE["olora"](ends(lora=[2.0, 3.0], olora=[1.9, 2.9])).shows
    assert not JUDGE["olora"](ends(lora=[2.0, 3.0], olora=[1.0, 3.0])).shows, "no lower on one seed"


def test_nearer_the_gradient() -> None:
    def shows(lora: list[float], ga: list[float], one: list[float]) -> bool:
        return JUDGE["alignment"](measured("descent", lora=lora, lora_ga=ga, lora_one=one)).shows

    assert shows([0.2, 0.1], [0.4, 0.5], [0.9, 0.2])
    assert not shows([0.2, 0.1], [0.39, 0.5], [0.9, 0.3]), "less than twice on one seed"
    assert not shows([0.2, 0.1], [0.4, 0.5], [0.9, 0.1]), "the other one"
    assert not shows([0.5, 0.5], [0.2, 0.2], [0.2, 0.2]), "the other way round"


def test_closes_the_gap() -> None:
    def shows(lora: list[float], pro: list[float], full: list[float]) -> bool:
        return JUDGE["lora-pro"](ends(lora=lora, lora_pro=pro, full=full)).shows

    assert shows([2.0, 3.0], [1.7, 2.0], [1.0, 1.0])
    two = ends(lora=[2.0, 3.0], lora_pro=[2.0, 3.0], lora_pro_weight=[1.7, 2.0], full=[1.0, 1.0])
    assert JUDGE["lora-pro"](two).shows, "one form is enough"
    mixed = ends(lora=[2.0, 3.0], lora_pro=[1.7, 2.9], lora_pro_weight=[2.0, 2.0], full=[1.0, 1.0])
    assert not JUDGE["lora-pro"](mixed).shows, "but on every seed"
    assert shows([2.0], [0.9], [1.0]), "beyond full fine-tuning"
    assert not shows([2.0, 3.0], [1.7, 2.7], [1.0, 1.0]), "15 % on one seed"
    assert not shows([2.0, 3.0], [2.5, 3.5], [1.0, 1.0])
    assert not shows([2.0, 1.0], [1.0, 1.4], [1.0, 1.5]), "full fine-tuning is worse: nothing to come nearer to"
