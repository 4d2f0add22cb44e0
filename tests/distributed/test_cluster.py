"""recipes/cluster: the scripts run, under a `srun` that is played, and under the real torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from runs import Place

import lrft
from lrft.distributed import launch

ROOT = Path(lrft.__file__).parents[1]
CLUSTER = ROOT / "recipes" / "cluster"
SCRIPTS = sorted(path for path in CLUSTER.iterdir() if path.suffix in (".sh", ".sbatch"))
# Starts what follows its options twice, as srun would on two nodes with a task each.
SRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
print("srun", *words, flush=True)
while words[0].startswith("-"):
    del words[0]
tasks = [
    subprocess.Popen(words, env={{**os.environ, "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}})
    for rank in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
test "$*" = "show hostnames $SLURM_JOB_NODELIST" || exit 1
printf 'localhost\\nother-node\\n'
"""
LRFT = '#!/bin/sh\nexec "{python}" -m lrft "$@"\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place.make(tmp_path_factory.mktemp("cluster"))
    commands = place.root / "bin"
    commands.mkdir()
    for name, text in {"srun": SRUN, "lrft": LRFT}.items():
        (commands / name).write_text(text.format(python=sys.executable))
    (commands / "scontrol").write_text(SCONTROL)
    for path in commands.iterdir():
        path.chmod(0o755)
    return place


def run(place: Place, script: str, *arguments: str, **named: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RANK"))}
    path = f"{place.root / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **named}
    command = ["bash", str(CLUSTER / script), str(place.root / "recipe.yaml"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def job() -> dict[str, str]:
    """What sbatch sets, with a number whose port is free."""
    port = next(p for p in iter(launch.free_port, 0) if 20000 <= p < 40000)
    return {"SLURM_JOB_ID": str(port - 20000), "SLURM_JOB_NODELIST": "node-[0-1]", "SLURM_CPUS_PER_TASK": "1"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_and_executable(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).returncode == 0
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in path.read_text()


def test_the_job_has_one_task_for_each_gpu() -> None:
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.+)$", (CLUSTER / "slurm.sbatch").read_text(), re.M))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "8"
    assert asked["signal"].startswith("TERM@"), "lrft saves at TERM, a task's usual KILL leaves nothing"


def test_the_commands_that_recipes_and_pages_name_are_there() -> None:
    named = set()
    for path in (*CLUSTER.iterdir(), ROOT / "README.md", ROOT / "docs" / "scale.md"):
        named |= set(re.findall(r"recipes/cluster/[a-z0-9-]+\.[a-z]+", path.read_text(encoding="utf-8")))
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.slow
def test_the_slurm_script_trains_what_one_process_trains(place: Place) -> None:
    eps = "training.optimizer={adamw: {eps: 1e-3}}"
    said = run(place, "slurm.sbatch", f"output_dir={place.root / 'slurm'}", eps, **job())
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=1 lrft train" in said
    assert "x 2 processes" in said
    assert said.count("done ") == 1
    one = place.train(eps, out="one")
    assert runs.distance(runs.tensors(one), runs.tensors(place.root / "slurm"), "adapter") < 1e-5


@pytest.mark.slow
@pytest.mark.all
def test_a_dry_run_under_slurm_and_under_torchrun_deals_the_same_rows(place: Place) -> None:
    out = f"output_dir={place.root / 'dry'}"
    slurm = run(place, "slurm.sbatch", out, "--dry-run", **job())
    torch = run(place, "torchrun.sh", out, "--dry-run", GPUS="2", PORT=str(launch.free_port()))
    pattern = re.compile(r"^rank ([01]) .*?step 1: \d+ rows in \d+ micro-batch(?:es)?: ([\d ]+)$", re.M | re.S)
    assert "MASTER_ADDR=localhost" in slurm
    assert "LOCAL_WORLD_SIZE=2" in torch
    found = [sorted(pattern.findall(text)) for text in (slurm, torch)]
    assert found[0] == found[1]
    assert [rank for rank, _ in found[0]] == ["0", "1"]
    assert not (place.root / "dry").exists()


@pytest.mark.slow
@pytest.mark.all
def test_torchrun_trains(place: Place) -> None:
    said = run(place, "torchrun.sh", f"output_dir={place.root / 'torchrun'}", GPUS="2", PORT=str(launch.free_port()))
    assert "x 2 processes" in said
    assert len(runs.records(place.root / "torchrun")) == runs.STEPS
