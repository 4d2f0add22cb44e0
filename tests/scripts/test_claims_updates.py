"""Claims of what training does to weights, to memory and to what was known: their rules and what they measure."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from common import small_model
from judged_claims import judged, shows
from paper_claims import asking, pairs
from paper_claims.claim import Verdict
from paper_claims.papers import dylora, forgetting, galore_memory

import lrft
from lrft.adapters.storage import read_adapter
from lrft.utils import files

RECIPES = Path(lrft.__file__).parents[1] / "recipes" / "claims"


# --- judgements ---


def test_less_of_both() -> None:
    less, more, little, much = [2.0, 2.1], [0.5, 0.6], [1.0, 1.1], [3.0, 3.1]

    def both(losses: list[list[float]], rises: list[list[float]], slower: list[float] = little) -> Verdict:
        runs = ("lora", "full", "full-slower")
        learned, lost = (dict(zip(runs, [*found, slower], strict=True)) for found in (losses, rises))
        return judged("forgetting", learned, rise=lost)

    assert both([less, more], [little, much]).shows
    assert not both([more, less], [little, much]).shows, "it learns more"
    assert not both([less, more], [much, little]).shows, "it forgets more"
    assert not both([[2.0, 0.6], more], [little, much]).shows, "as much is learned on one seed"
    assert not both([less, more], [[1.0, 3.1], much]).shows, "and forgotten on one seed"
    for slower, word in (([0.9, 1.0], "forgets less"), (little, "no less"), ([0.9, 1.2], "no less")):
        verdict = both([less, more], [little, much], slower)
        assert verdict.shows
        assert word in verdict.figures


def test_more_intruders() -> None:
    losses = {"lora": [2.0, 2.0], "full": [1.9, 2.0]}
    assert shows("intruders", losses, intruders={"lora": [4, 9], "full": [2, 4]})
    assert shows("intruders", losses, intruders={"lora": [4, 9], "full": [0, 0]})
    assert not shows("intruders", losses, intruders={"lora": [4, 7], "full": [2, 4]}), "not twice as many on one seed"
    assert not shows("intruders", losses, intruders={"lora": [0, 9], "full": [0, 4]}), "none is not twice none"
    learns_less = {"lora": [2.0, 2.0], "full": [1.9, 2.1]}
    assert not shows("intruders", learns_less, intruders={"lora": [4, 9], "full": [2, 4]}), "full has learned less"


def test_a_rank_twice_as_high() -> None:
    def ranks(lora: list[float], relora: list[float], remora: list[float]) -> bool:
        found = {"lora": lora, "relora": relora, "remora": remora}
        return shows("accumulated-rank", None, rank=found, effective=found)

    assert ranks([8, 8], [16, 32], [99, 99])
    assert ranks([8, 8], [16, 32], [1, 1]), "remora is not judged"
    assert not ranks([8, 8], [15.9, 32], [99, 99]), "on one seed"
    assert not ranks([32, 32], [8, 8], [99, 99])


def test_a_state_that_is_smaller() -> None:
    assert shows("galore-memory", None, state={"full": [10, 10], "galore": [4, 3]})
    assert not shows("galore-memory", None, state={"full": [10, 10], "galore": [4.1, 3]}), "on one seed"
    assert not shows("galore-memory", None, state={"full": [4, 3], "galore": [10, 10]})


def test_better_when_cut() -> None:
    def cut(lora: list[list[float]], other: list[list[float]]) -> bool:
        found = {f"rank_{rank}": {"lora": a, "dylora": b} for rank, a, b in zip((1, 2, 4), lora, other, strict=True)}
        return shows("dylora", None, **found)

    high, low = [[5.0, 5.1], [4.5, 4.6], [4.0, 4.1]], [[3.5, 3.6], [3.4, 3.5], [3.3, 3.4]]
    assert cut(high, low)
    assert not cut(low, high)
    for at in range(3):
        once = [list(values) for values in low]
        once[at][1] = high[at][1]
        assert not cut(high, once), "as high at one rank on one seed"


# --- measures ---


def test_the_state_is_that_of_the_last_checkpoint(tmp_path: Path) -> None:
    for step, numbers in ((1, 999), (2, 1000)):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        (folder / "adapter").mkdir(parents=True)
        state = {"a": torch.zeros(numbers), "b": torch.zeros(250, dtype=torch.float16)}
        files.write_tensors(folder / "optimizer.safetensors", state)
    (tmp_path / "last").symlink_to("checkpoints/step-2/adapter")
    (tmp_path / "best").symlink_to("checkpoints/step-1/adapter")
    assert galore_memory.megabytes(str(tmp_path), "") == (4 * 1000 + 2 * 250) / 1e6


def test_states_of_galore_and_adam_in_numbers() -> None:
    """What is kept agrees with the formulas: 2 m n of Adam; 2 m r of the moments and r n of the directions."""
    kept = files.read_json(RECIPES.parents[1] / "docs" / "claims" / "galore-memory.json")["measured"]["state"]
    sides = 2 * [*4 * [(256, 256)], *3 * [(704, 256)]]
    adam = sum(2 * m * n for m, n in sides)
    galore = sum(2 * m * 64 + 64 * n for m, n in sides)
    for run, numbers, scalars in (("full", adam, 1), ("galore", galore, 2)):  # counts of steps
        assert kept[run].values() == pytest.approx(2 * [4 * (numbers + scalars * len(sides)) / 1e6])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base that knows no pairs, and runs of two steps: lora and dylora."""
    folder = tmp_path_factory.mktemp("claims")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(Path(lrft.__file__).parents[1]))
        pairs.write_random(pairs.BASE)
        for name, count in (("old", 6), ("new", 8)):
            small_model.write_rows(pairs.FOLDER / f"{name}.jsonl", pairs.pairs(count, seed=count))
        for method in ("lora", "dylora"):
            text = (
                f"extends: {RECIPES / 'pairs.yaml'}\nadapter: {{method: {method}}}\noutput_dir: {method}\n"
                "training: {max_steps: 4, warmup_steps: 0, learning_rate: 0.03}\n"
            )
            files.write_text(folder / f"{method}.yaml", text)
            small_model.lrft("train", f"{method}.yaml", "--quiet")
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("PYTHONPATH", str(Path(lrft.__file__).parents[1]))
    return trained


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dylora"])
@pytest.mark.all
def test_an_adapter_is_cut_to_its_first_components(here: Path, method: str, tmp_path: Path) -> None:
    """Against the adapter's own weight, with its other components set to zero or its gate to the lower rank."""
    saved = read_adapter(here / method / "best")
    before = files.read_tensors(pairs.BASE / "model.safetensors")
    for rank in (1, 2, 4, 8):
        dylora.cut(here / method / "best", tmp_path / str(rank), rank=rank)
        after = files.read_tensors(tmp_path / str(rank) / "model.safetensors")
        assert after.keys() == before.keys()
        wanted = dict(before)
        for site in saved.sites:
            adapter: Any = saved.build(site)
            with torch.no_grad():
                if method == "dylora":
                    adapter.gate.copy_(adapter.first(rank))
                else:
                    adapter.A[rank:] = 0
                wanted[f"{site.name}.weight"] = before[f"{site.name}.weight"] + adapter.delta_weight()
        assert any(not torch.equal(after[key], before[key]) for key in before)
        torch.testing.assert_close(after, wanted)
    whole = asking.loss_on(tmp_path / "8", dylora.NEW)
    assert whole == pytest.approx(asking.loss_on(here / method, dylora.NEW), abs=1e-5)
    assert dylora.loss_at(str(here / method), "", rank=1) != pytest.approx(whole, abs=1e-3)


@pytest.mark.slow
@pytest.mark.all
def test_the_rise_is_that_over_the_base(here: Path) -> None:
    """Against `lrft.compare.forgetting`, which switches the adapters off."""
    forgetting.before.cache_clear()
    command = [sys.executable, "-m", "lrft.compare.forgetting", "lora", str(forgetting.OLD)]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    rise = forgetting.rise("lora", "")
    forgetting.before.cache_clear()
    assert not math.isclose(said["after"], said["before"], rel_tol=1e-3)
    assert rise == pytest.approx(said["after"] - said["before"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.all
def test_rank_and_intruders_are_asked_of_all_layers(here: Path) -> None:
    saved = read_adapter(here / "lora" / "best")
    ranks, intruders = [], 0
    weights = files.read_tensors(pairs.BASE / "model.safetensors")
    for site in saved.sites:
        adapter: Any = saved.build(site)
        update, W = adapter.delta_weight().detach().double(), weights[f"{site.name}.weight"].double()
        values = torch.linalg.svdvals(update)
        ranks.append(int((values > 0.01 * values[0]).sum()))
        leading = torch.linalg.svd(W + update).U[:, :10]
        intruders += int(((torch.linalg.svd(W, full_matrices=False).U.T @ leading).abs().amax(0) < 0.5).sum())
    found = asking.changed("lora")
    assert found["used_rank"] == pytest.approx(sum(ranks) / len(ranks))
    assert found["intruders"] == intruders
