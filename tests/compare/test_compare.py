"""`lrft compare` with real runs in processes of their own: what it trains, what it writes, and how it is broken off."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from parsed import EVIL, sound

import lrft
from lrft import recipe as recipes
from lrft.adapters.storage import read_adapter
from lrft.cli.main import run_command
from lrft.compare import html, result, write
from lrft.compare.budget import choose
from lrft.compare.config import read
from lrft.compare.estimate import rank_line
from lrft.compare.forgetting import before_and_after
from lrft.compare.jobs import Job, make_jobs
from lrft.compare.run import GOING_ON, taken
from lrft.errors import LrftError, UsageError
from lrft.runs.metrics import read_metrics
from lrft.runs.verdict import BEST, LAST, START
from lrft.utils import files

RECIPE = "recipe: {extends: recipe.yaml, evaluation: {every: 0.5, at_start: true}}\n"
WHOLE = (
    RECIPE
    + """\
runs: [lora, lora-fa]
grid: {training.learning_rate: [3e-3, 1e-2]}
seeds: [1, 2]
forgetting: general.txt
output_dir: out
"""
)
FIGURES = ("mean", "spread", "difference", "low", "high", "general_before", "general_after", "tokens_per_second")


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lrft", "compare", "compare.yaml", *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(Path(lrft.__file__).parents[1]), "LRFT_CACHE": str(root / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def compare(root: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(root, *arguments)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def make(root: Path, text: str) -> Path:
    runs.Place.make(root)
    (root / "general.txt").write_text("The river was high that spring.\n" * 30)
    (root / "compare.yaml").write_text(text)
    return root


def found(root: Path) -> dict[str, Any]:
    return json.loads((root / "out" / "compare.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two methods x two learning rates x two seeds, two at a time: (its folder, what was printed)."""
    root = make(tmp_path_factory.mktemp("whole"), WHOLE)
    code, out, err = compare(root, "--jobs", "2")
    assert code == 0, out + err
    return root, out


def copied(whole: tuple[Path, str], to: Path) -> Path:
    """The finished comparison, to be changed. Its recipes name no absolute output: runs stay where they are."""
    shutil.copytree(whole[0], to, symlinks=True, dirs_exist_ok=True)
    return to


@pytest.mark.slow
def test_every_run_is_an_ordinary_one(whole: tuple[Path, str]) -> None:
    root, _ = whole
    folders = sorted(path.parent.relative_to(root) for path in root.glob("out/runs/*/*/*/report.md"))
    names = [
        f"out/runs/{m}/learning_rate-{r}/seed-{s}" for m in ("lora", "lora-fa") for r in (0.003, 0.01) for s in (1, 2)
    ]
    assert folders == sorted(map(Path, names))
    for folder in folders:
        recipe = recipes.load(root / folder / "resolved.yaml")
        method, rate, seed = folder.parts[2:]
        assert [entry.name for entry in recipe.adapter.method] == [method]
        assert (f"learning_rate-{recipe.training.learning_rate}", f"seed-{recipe.training.seed}") == (rate, seed)
        # As many numbers: lora-fa trains B alone.
        assert recipe.adapter.rank == (4 if method == "lora" else 8)
        assert (root / folder / "best").exists()
    assert not (root / "out" / "merged").exists() or not list((root / "out" / "merged").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "lora-fa"])
def test_a_run_of_a_comparison_is_to_the_bit_what_its_recipe_trains(
    method: str, whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained again, by a process that is no fork: this one."""
    monkeypatch.chdir(whole[0])
    there = Path(f"out/runs/{method}/learning_rate-0.01/seed-2")
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))  # what each of two jobs is given
    try:
        assert run_command(["train", f"{there}.yaml", "--quiet", f"output_dir={tmp_path / 'again'}"]) == 0
    finally:
        torch.set_num_threads(threads)
    adapters = [read_adapter(folder / "last").state_dict() for folder in (there, tmp_path / "again")]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
    losses = [[r["loss"] for r in runs.records(folder)] for folder in (there, tmp_path / "again")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_the_figures_are_those_of_the_runs(whole: tuple[Path, str]) -> None:
    """Counted again from the run folders, with numpy."""
    root, _ = whole
    facts = found(root)
    losses = {
        (m, r): np.array([min(e["loss"] for e in runs.records(run, "eval") if e["step"]) for run in seeds])
        for m in ("lora", "lora-fa")
        for r in ("0.003", "0.01")
        if (seeds := [root / f"out/runs/{m}/learning_rate-{r}/seed-{s}" for s in (1, 2)])
    }
    best = {m: min(("0.003", "0.01"), key=lambda r, m=m: losses[m, r].mean()) for m in ("lora", "lora-fa")}
    for row in facts["methods"]:
        values = losses[row["run"], best[row["run"]]]
        assert row["best"] == {"training.learning_rate": float(best[row["run"]])}
        assert list(row["values"].values()) == pytest.approx(values)
        assert (row["mean"], row["spread"]) == pytest.approx((values.mean(), values.std(ddof=1)))
        steps = [
            record
            for folder in row["folders"]
            for record in read_metrics(root / folder / "metrics.jsonl")[0]
            if record["kind"] == "step"
        ]
        assert row["tokens_per_second"] == pytest.approx(np.median([s["tokens_per_second"] for s in steps]))
        assert row["memory_gb"] == max(s["memory_gb"] for s in steps)
        run = json.loads((root / row["best_folder"] / "run.json").read_text())
        assert run["result"]["best validation loss"] == pytest.approx(values.min())
        assert (row["trained"], row["exports_to"]) == (
            run["adapter"]["trainable parameters"],
            run["adapter"]["exports to"],
        )
        assert (row["merge_check"], row["side_by_side"]) == ("holds", 2)
        assert 0 <= row["merge_difference"] < 1e-4
    lora, other = facts["methods"]
    assert (lora["difference"], lora["low"], lora["high"]) == (None, None, None)
    d = losses["lora-fa", best["lora-fa"]] - losses["lora", best["lora"]]
    half = 12.7062047 * d.std(ddof=1) / np.sqrt(2)
    assert (other["difference"], other["low"], other["high"]) == pytest.approx(
        (d.mean(), d.mean() - half, d.mean() + half)
    )
    assert lora["general_before"] == pytest.approx(other["general_before"])
    assert lora["general_before"] != lora["general_after"]


@pytest.mark.slow
def test_general_text_is_measured_as_eval_does(whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, _ = whole
    monkeypatch.chdir(root)
    rows = [{"text": f"The river was high in spring {n}."} for n in range(7)]
    text = runs.write_rows(root / "general.jsonl", rows)
    run = found(root)["methods"][0]["folders"][0]
    said = before_and_after(Path(run), text)
    for target, figure in ((run, said["after"]), (str(root / "base"), said["before"])):
        done = subprocess.run(
            [sys.executable, "-m", "lrft", "eval", target, "--data", str(text), "--no-generate", "--json"],
            env={**os.environ, "PYTHONPATH": str(Path(lrft.__file__).parents[1])},
            capture_output=True,
            text=True,
        )
        assert json.loads(done.stdout)["loss"] == pytest.approx(figure, rel=1e-5), done.stderr


@pytest.mark.slow
def test_the_best_at_the_edge_is_pointed_out(whole: tuple[Path, str]) -> None:
    root, said = whole
    edges = [w for w in found(root)["warnings"] if "value tried" in w]
    assert len(edges) == 2, "of two values one is always an edge"
    for name in ("md", "html"):
        assert (root / "out" / f"compare.{name}").read_text().count("value tried") == 2
    assert " ".join(said.split()).count("may be better still") == 2


@pytest.mark.slow
def test_all_files_hold_the_same_figures(whole: tuple[Path, str]) -> None:
    root, _ = whole
    facts = found(root)
    with (root / "out" / "compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    for row, line in zip(facts["methods"], lines, strict=True):
        assert list(line) == list(row)
        for key, value in row.items():
            assert line[key] == value if isinstance(value, str) else json.loads(line[key] or "null") == value
    markdown = (root / "out" / "compare.md").read_text().replace("\\", "")
    page = sound((root / "out" / "compare.html").read_text()).tables[0]
    in_markdown = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown.splitlines() if line[:1] == "|"
    ]
    for at, row in enumerate(facts["methods"]):
        written = in_markdown[2 + at]
        assert [cell.strip() for cell in page[1 + at]] == written
        shown = dict(zip(in_markdown[0], written, strict=True))
        assert shown["run"] == row["run"]
        assert shown["loss (lower is better)"] == f"{row['mean']:.4f} ± {row['spread']:.4f}"
        assert shown["general text"] == f"{row['general_before']:.4f} → {row['general_after']:.4f}"
        assert shown["tokens/s"] == f"{row['tokens_per_second']:,.0f}"
        assert shown["trainable"].startswith(f"{row['trained']:,} (")
    row = facts["methods"][1]
    assert f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})" in markdown


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_draws_everything(whole: tuple[Path, str]) -> None:
    text = (whole[0] / "out" / "compare.html").read_text()
    page = sound(text)
    assert not re.search(r"https?:|//", text)
    assert [a["aria-label"] for a in page.all("svg")] == [
        *(
            "loss against seconds for 1,000 tokens",
            "loss against memory, GB",
            "loss against trainable parameters, thousands",
        ),
        *("loss by learning_rate", "training loss, smoothed, nats per token", "validation loss, nats per token"),
    ]
    assert "nothing was recorded" not in text
    # three scatters without lines but the front's, then two runs in each chart
    lines = [a["class"] for a in page.all("polyline") if a["class"] != "front"]
    assert lines == ["c0", "c1"] * 3


@pytest.mark.slow
def test_a_second_call_trains_nothing(whole: tuple[Path, str], tmp_path: Path) -> None:
    root = copied(whole, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.glob("out/runs/**/*") if path.is_file()}
    facts = found(root)
    code, out, _ = compare(root)
    assert code == 0
    assert "8 of 8 runs are already finished" in out
    assert "measuring" not in out
    assert "checking" not in out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert found(root) == facts
    code, out, _ = compare(root, "--dry-run")
    assert code == 0
    assert "nothing left to train" in out
    (root / "recipe.yaml").write_text((root / "recipe.yaml").read_text().replace("epochs: 2", "epochs: 3"))
    code, _, err = compare(root)
    assert code == 2
    assert "was trained with another recipe: training.epochs was 2.0, is 3.0 now" in err
    (root / "recipe.yaml").write_text((root / "recipe.yaml").read_text().replace("epochs: 3", "epochs: 2"))
    data = Path(recipes.load(root / "recipe.yaml").data.train[0].path)
    rows = data.read_text()
    data.write_text(rows + rows.splitlines()[0] + "\n")
    code, _, err = compare(root, "--dry-run")
    data.write_text(rows)
    assert code == 2
    assert re.search(r"train.jsonl has changed since \S+ was trained", err)
    assert compare(root, "--dry-run")[0] == 0


@pytest.mark.slow
def test_a_dry_run_lists_everything_and_leaves_nothing(tmp_path: Path) -> None:
    root = make(tmp_path, WHOLE)
    before = sorted(root.rglob("*"))
    code, out, err = compare(root, "--dry-run", "--jobs", "3")
    assert code == 0, err
    assert "8 runs: 2 methods at 4 points x 2 seeds" in out
    assert re.search(r"lora-fa +rank 8 +2,944 trainable parameters, -1.1% \(chosen\)", out)
    assert len(re.findall(r"seed \d   new", out)) == 8
    assert re.search(r"about .*, 3 at a time", out)
    assert [path for path in sorted(root.rglob("*")) if "cache" not in path.parts] == before


@pytest.mark.slow
def test_what_fails_is_told_and_stops_nothing_else(tmp_path: Path) -> None:
    runs_ = "{broken: {adapter.method: lora, data.train: nowhere.jsonl}, lora: , far: {adapter.method: lora, "
    runs_ += "training.learning_rate: 1e30, training.max_grad_norm: none}}"
    text = f"{RECIPE}runs: {runs_}\nbaseline: lora\nseeds: [1]\noutput_dir: out\n"
    root = make(tmp_path, text)
    code, out, err = compare(root)
    assert code == 1
    assert "1 of 3 runs failed" in err
    facts = found(root)
    assert {one["run"]: one["exit"] for one in facts["failed"]} == {"broken seed 1": 3, "far seed 1": 7}
    said = {one["run"]: one["said"] for one in facts["failed"]}
    assert "nowhere.jsonl" in said["broken seed 1"]
    assert "became" in said["far seed 1"]
    assert "broken seed 1" in (root / "out" / "compare.md").read_text()
    assert "nowhere.jsonl" in (root / "out" / "compare.html").read_text()
    rows = {row["run"]: row for row in facts["methods"]}
    assert rows["lora"]["mean"] > 0
    assert rows["lora"]["spread"] is None
    assert rows["broken"]["mean"] is None
    assert any("one seed" in warning for warning in facts["warnings"])
    assert any("is not in the grid" in warning for warning in facts["warnings"])
    # The reason is taken away: what failed is tried again, what diverged is not.
    shutil.copy(root / "train.jsonl", root / "nowhere.jsonl")
    code, out, _ = compare(root)
    assert code == 0, out
    assert "2 of 3 runs are already finished" in out
    assert found(root)["methods"][0]["mean"] == pytest.approx(rows["lora"]["mean"])


LONG = RECIPE + "runs: [lora, lora-fa]\nseeds: [1]\noutput_dir: out\n"


def under_way(tmp_path: Path) -> tuple[Path, subprocess.Popen[str], list[Path]]:
    """The folder of a comparison whose two runs of 400 steps are being trained, its process, and their folders."""
    root = make(tmp_path, LONG.replace("evaluation", "training: {max_steps: 400, epochs: 999}, evaluation"))
    process = start(root, "--jobs", "2")
    folders = [root / f"out/runs/{name}/seed-1" for name in ("lora", "lora-fa")]
    until = time.monotonic() + 600
    while not all((folder / "metrics.jsonl").is_file() for folder in folders):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    return root, process, folders


@pytest.mark.slow
@pytest.mark.all
def test_a_signal_saves_every_run_and_the_next_call_goes_on(tmp_path: Path) -> None:
    root, process, folders = under_way(tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "Run the same command again to continue." in err
    for folder in folders:
        with (folder / ".lock").open() as lock:  # nobody is left who holds it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        last = runs.records(folder)[-1]["step"]
        assert runs.steps(folder)[-1] == last
    assert any(runs.steps(folder)[-1] < 400 for folder in folders), "otherwise nothing was interrupted"
    assert GOING_ON in found(root)["warnings"]
    assert found(root)["failed"] == []
    code, out, err = compare(root)
    assert code == 0, out + err
    for folder in folders:
        assert [record["step"] for record in runs.records(folder)] == list(range(1, 401))
        assert runs.steps(folder)[-1] == 400
    assert all(row["mean"] is not None for row in found(root)["methods"])


@pytest.mark.slow
@pytest.mark.all
def test_runs_whose_comparison_was_killed_save_and_leave(tmp_path: Path) -> None:
    root, process, folders = under_way(tmp_path)
    process.kill()
    process.communicate()
    for folder in folders:
        with (folder / ".lock").open() as lock:  # waits for whoever holds it
            fcntl.flock(lock, fcntl.LOCK_EX)
    assert any(runs.steps(folder)[-1] < 400 for folder in folders), "otherwise nobody noticed"
    code, out, err = compare(root)
    assert code == 0, out + err
    assert all(runs.steps(folder)[-1] == 400 for folder in folders)


@pytest.mark.slow
def test_a_signal_while_processes_start_leaves_nothing_behind(tmp_path: Path) -> None:
    root = make(tmp_path, LONG)
    process = start(root, "--jobs", "2")
    until = time.monotonic() + 600
    while not list(root.glob("out/runs/*/seed-1.log")):
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 143, out + err
    assert found(root)["failed"] == []
    assert set(found(root)["runs"]) <= {"new", "interrupted"}


def test_a_folder_is_used_by_one_at_a_time(tmp_path: Path) -> None:
    with taken(tmp_path / "out"), pytest.raises(LrftError, match="in use"), taken(tmp_path / "out"):
        raise AssertionError("taken twice")
    with taken(tmp_path / "out"):
        pass


@pytest.mark.slow
def test_exact_match_is_asked_of_eval(tmp_path: Path) -> None:
    text = RECIPE + "runs: [lora]\nmetric: exact_match\nseeds: [3]\noutput_dir: out\n"
    root = make(tmp_path, text)
    code, out, err = compare(root)
    assert code == 0, out + err
    facts = found(root)
    assert (facts["metric"], facts["better"], facts["methods"][0]["mean"]) == ("exact_match", "higher", 0.0)
    kept = json.loads((root / "out/runs/lora/seed-3.json").read_text())["evaluation"]
    assert kept["exact_match"] == 0.0
    assert kept["loss"] > 0


@pytest.mark.all
def test_pairs_are_ranked_by_their_reward_accuracy(tmp_path: Path) -> None:
    pairs = [
        {"prompt": row["messages"][:1], "chosen": row["messages"][1:], "rejected": other["messages"][1:]}
        for row, other in zip(runs.rows(9), runs.rows(9, seed=5), strict=True)
        if row["messages"][1] != other["messages"][1]
    ]
    root = make(tmp_path, RECIPE + "runs: [lora]\nmetric: reward accuracy\nseeds: [3]\noutput_dir: out\n")
    for name in ("train", "validation"):
        runs.write_rows(root / f"{name}.jsonl", pairs)
    text = (root / "compare.yaml").read_text().replace("evaluation:", "training: {objective: dpo}, evaluation:")
    (root / "compare.yaml").write_text(text)
    code, out, err = compare(root)
    assert code == 0, out + err
    row = found(root)["methods"][0]
    facts = json.loads((root / "out/runs/lora/seed-3/run.json").read_text())["result"]
    (best,) = (r for r in runs.records(root / "out/runs/lora/seed-3", "eval") if r["step"] == facts["best step"])
    assert row["mean"] == best["figures"]["reward accuracy"]
    assert row["merge_check"] == "holds"
    assert "| reward accuracy (higher is better) |" in (root / "out/compare.md").read_text()


# What needs no training: folders are written as runs would leave them.


def written(root: Path, job: Job, loss: float | None, *, exit: int = 0) -> None:
    """A run folder as far as a comparison reads it; loss None: it has failed."""
    job.folder.mkdir(parents=True)
    result_ = {"best validation loss": loss}
    adapter = {"trainable parameters": 10, "exports to": "merged model only", "methods": [job.variant.name]}
    (job.folder / "run.json").write_text(json.dumps({"id": str(job.folder), "result": result_, "adapter": adapter}))
    job.note(exit=exit, said="words", jobs=1)
    if loss is not None:
        (job.folder / "report.md").write_text("")


def planned(root: Path, text: str) -> tuple[Any, list[Job], list[Any]]:
    comparison = read(root / "compare.yaml") if (root / "compare.yaml").write_text(text) else None
    chosen = choose(comparison)
    return comparison, make_jobs(comparison, [None] * len(chosen)), chosen


THREE = (
    RECIPE + "runs: [lora, dora]\ngrid: {training.learning_rate: [1e-3, 2e-3, 4e-3]}\nseeds: [1, 2]\noutput_dir: out\n"
)


def test_the_best_point_is_the_best_mean_of_whole_ones(place: runs.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    comparison, jobs, chosen = planned(place.root, THREE)
    losses = {
        ("lora", 0.001): (3.0, 3.2), ("lora", 0.002): (1.0, 1.2), ("lora", 0.004): (1.05, 1.3),
        ("dora", 0.001): (3.0, 3.0), ("dora", 0.002): (2.0, 2.0), ("dora", 0.004): (0.1, None),
    }  # fmt: skip
    for job in jobs:
        rate = job.point.plain()["training.learning_rate"]
        written(place.root, job, losses[job.variant.name, rate][job.seed - 1], exit=7 if rate == 0.004 else 0)
    facts = result.gather(comparison, jobs, chosen)
    assert [row["best"]["training.learning_rate"] for row in facts["methods"]] == [0.002, 0.002]
    assert [row["mean"] for row in facts["methods"]] == pytest.approx([1.1, 2.0])
    assert facts["methods"][1]["difference"] == pytest.approx(0.9)
    assert [one["run"] for one in facts["failed"]] == ["dora learning_rate 0.004 seed 2"]
    assert not any("value tried" in w for w in facts["warnings"]), "0.004 was tried by dora too, and diverged"
    assert facts["runs"] == {"diverged": 1, "finished": 11}
    assert "diverged" in write.markdown(facts)


def test_it_says_what_it_ranks_on_and_what_it_cannot_tell(place: runs.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    comparison, jobs, chosen = planned(place.root, THREE)
    for job in jobs:
        written(place.root, job, {1: 2.0, 2: 2.2}[job.seed] + 0.001 * (job.variant.name == "dora") * (-1) ** job.seed)
        facts = files.read_json(job.folder / "run.json") | {"data": {"validation_rows": 50 + job.seed}}
        worse = job.variant.name == "lora" and job.seed == 2 and job.point is job.variant.points[0]
        if worse:  # the start is the best of this run, and its last state is what is ranked
            facts["result"] = {START: 1.0, BEST: 1.0, LAST: 2.2, "best step": 0}
        files.write_json(job.folder / "run.json", facts)
        record = {"kind": "eval", "step": 6, "loss": 2.0, "tokens": 700, "best": True}
        (job.folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    facts = result.gather(comparison, jobs, chosen)
    assert facts["methods"][0]["mean"] == pytest.approx(2.1), "not the untouched base's"
    assert facts["measured_on"] == {"rows": [51, 52], "tokens": [700, 700]}
    words = "ranked by loss on 51 to 52 validation rows, 700 trained tokens"
    assert words in write.markdown(facts)
    assert write.screen(facts)[-1] == words
    assert words in sound(html.render(facts)).texts("p")
    (undecided,) = [w for w in facts["warnings"] if "cannot tell" in w]
    assert undecided.startswith("dora: the interval of the difference to lora holds 0")
    (worse_,) = [w for w in facts["warnings"] if "worse than the untouched base" in w]
    assert worse_.startswith("lora learning_rate 0.001 seed 2 is worse")
    for row in facts["methods"]:
        row |= {"low": 0.1, "high": 0.2}
    assert result.undecided(facts["methods"], "lora") == []


def test_rates_stand_on_a_logarithmic_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(html, "chart", lambda *lines, log, **_: asked.append(log))
    points = [{"run": "a", "point": {key: value}, "mean": 1.0} for key, value in (("x", 1), ("x", 2))]
    rates = [{**one, "point": {"training.learning_rate": one["point"]["x"] / 1e4}} for one in points]
    for grid in (points, rates):
        html.grid_charts({"methods": [{"run": "a", "best": grid[0]["point"]}], "grid": grid, "metric": "loss"})
    assert asked == [False, True]


def test_higher_is_better_for_answers(place: runs.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    comparison, jobs, chosen = planned(place.root, THREE.replace("seeds:", "metric: exact_match\nseeds:"))
    for job in jobs:
        written(place.root, job, 1.0)
        rate = job.point.plain()["training.learning_rate"]
        job.note(evaluation={"run": str(job.folder), "exit": 0, "exact_match": rate * 100 + job.seed / 100})
    facts = result.gather(comparison, jobs, chosen)
    assert [row["best"]["training.learning_rate"] for row in facts["methods"]] == [0.004, 0.004]
    assert facts["methods"][0]["best_folder"].endswith("seed-2")
    assert sum("is the highest value tried" in w for w in facts["warnings"]) == 2


def test_a_figure_of_the_objective_is_that_of_the_best_state(
    place: runs.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.root)
    text = THREE.replace("at_start: true}}", "at_start: true}, training: {objective: dpo}}")
    comparison, jobs, chosen = planned(place.root, text.replace("seeds:", "metric: reward accuracy\nseeds:"))
    for job in jobs:
        written(place.root, job, 1.0)
        facts = json.loads((job.folder / "run.json").read_text())
        facts["result"] |= {"best step": 2, LAST: 1.5, START: 2.0}
        (job.folder / "run.json").write_text(json.dumps(facts))
        rate = job.point.plain()["training.learning_rate"]
        evals = [(0, 0.5), (2, rate * 100 + job.seed / 100), (4, 0.9)]
        records = [{"kind": "eval", "step": step, "figures": {"reward accuracy": a}} for step, a in evals]
        (job.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    facts = result.gather(comparison, jobs, chosen)
    assert [row["mean"] for row in facts["methods"]] == pytest.approx([0.415, 0.415])
    assert "reward accuracy (higher is better)" in write.markdown(facts)
    (jobs[-1].folder / "metrics.jsonl").unlink()
    warnings = result.gather(comparison, jobs, chosen)["warnings"]
    assert f"{jobs[-1].label} has no reward accuracy: its evaluations have none" in warnings


def test_an_answer_of_another_run_does_not_count(place: runs.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    comparison, jobs, chosen = planned(place.root, THREE.replace("seeds:", "metric: exact_match\nseeds:"))
    for job in jobs:
        written(place.root, job, 1.0)
        job.note(evaluation={"run": "another", "exit": 0, "exact_match": 1.0})
    assert all(row["mean"] is None for row in result.gather(comparison, jobs, chosen)["methods"])


def test_a_page_of_nothing_is_a_page(place: runs.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    comparison, jobs, chosen = planned(place.root, THREE)
    facts = result.gather(comparison, jobs, chosen)
    write.write(facts, place.root)
    page = sound((place.root / "compare.html").read_text())
    assert page.texts("p").count("nothing was recorded") == 5
    assert page.all("svg") == []
    assert len(write.screen(facts)) == 3


def test_it_says_what_is_trained_beside_the_adapters(place: runs.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    alike = THREE.replace("evaluation:", "adapter: {norms: true}, evaluation:")
    comparison, jobs, chosen = planned(place.root, alike)
    facts = result.gather(comparison, jobs, chosen)
    (beside,) = {row["beside"] for row in facts["methods"]}
    assert beside == 5 * 24
    assert f"; {beside} of them stand beside the adapters, in each run. exports to" in write.markdown(facts)
    assert f"{beside:,} of them beside the adapters" in rank_line(comparison, "lora", chosen[0])
    comparison, jobs, chosen = planned(
        place.root, THREE.replace("runs: [lora, dora]", "runs: {lora: , dora: {adapter.norms: true}}")
    )
    facts = result.gather(comparison, jobs, chosen)
    assert f"some of them stand beside the adapters: 0 in lora, {beside} in dora" in write.markdown(facts)
    facts = result.gather(*planned(place.root, THREE))
    assert "beside the adapters" not in write.markdown(facts)


def test_names_are_text_on_the_page(place: runs.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    comparison, jobs, chosen = planned(place.root, THREE)
    for job in jobs:
        written(place.root, job, 1.0, exit=0)
    facts = result.gather(comparison, jobs, chosen)
    facts["warnings"].append(EVIL)
    facts["methods"][0] |= {"run": EVIL, "best_folder": EVIL, "exports_to": EVIL}
    facts["grid"][0]["run"] = EVIL
    facts["failed"].append({"run": EVIL, "exit": 7, "said": EVIL, "log": EVIL})
    facts |= {"comparison": EVIL, "baseline": EVIL}
    page = sound(html.render(facts))
    assert page.texts("li")[-1] == EVIL
    assert EVIL in page.texts("span"), "the key"
    assert page.texts("text").count(EVIL) == 1
    assert page.tables[0][1][0] == page.tables[0][1][-1] == page.tables[1][1][0] == EVIL
    assert page.tables[2][1] == [EVIL, "7", EVIL, EVIL]


def test_a_run_that_another_recipe_made_is_refused(place: runs.Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrft.compare.jobs import refuse_other_recipes

    monkeypatch.chdir(place.root)
    _, jobs, _ = planned(place.root, THREE)
    for job in jobs:
        written(place.root, job, 1.0)
        files.write_text(job.folder / "recipe.yaml", job.text)
    refuse_other_recipes(jobs)
    _, jobs, _ = planned(
        place.root, THREE.replace("[lora, dora]", "{lora: , dora: {adapter: {method: dora, rank: 5}}}")
    )
    with pytest.raises(UsageError, match=r"adapter.rank was 4, is 5 now"):
        refuse_other_recipes(jobs)
