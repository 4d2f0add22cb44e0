"""What hostile files must not achieve: code run, files touched elsewhere, secrets told, terminals driven."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny_tokenizers
from runs import Place
from stress import ROOT
from stress.damage import BESIDE, Touch

from lrft.adapters.storage import _checksum, read_adapter
from lrft.cli.main import run_command
from lrft.errors import CheckFailed, MissingError
from lrft.runs.folder import RunFolder
from lrft.utils import files

CANARY = "c4nary-9f2b7e"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SHORT = ("training.max_steps=2", "checkpoint.every=1")


def train(place: Place, *words: str) -> int:
    return run_command(["train", str(place.root / "recipe.yaml"), *words])


@pytest.fixture
def run(place: Place) -> Path:
    """A finished run of two steps."""
    return place.train(*SHORT)


# --- paths ---


def edit(folder: Path, change: Any) -> None:
    """Change lrft.json as somebody would who makes its checksum fit."""
    info = files.read_json(folder / "lrft.json")
    change(info)
    info["checksum"] = _checksum({k: v for k, v in info.items() if k != "checksum"})
    files.write_json(folder / "lrft.json", info)


@pytest.mark.parametrize(
    "name", ["../../../outside.safetensors", "{root}/outside.safetensors", "..", "adapter/../../x", ""]
)
def test_adapter_names_no_file_outside_its_folder(name: str, run: Path, place: Place) -> None:
    """Not even to compare its checksum: whether it matches would tell what is in it."""
    adapter = (run / "last").resolve()
    outside = place.root / "outside.safetensors"
    shutil.copyfile(adapter / "adapter_model.safetensors", outside)
    name = name.format(root=place.root)
    digest = files.sha256(outside)

    edit(adapter, lambda info: info["sha256"].update({name: digest}))
    with pytest.raises(CheckFailed, match=r"not a file in its folder|is missing"):
        read_adapter(adapter)
    edit(adapter, lambda info: info["sha256"].pop(name))
    read_adapter(adapter)
    edit(adapter, lambda info: info.update(tensors=name))
    with pytest.raises(CheckFailed, match="does not name a tensor file"):
        read_adapter(adapter)


@pytest.mark.parametrize("name", ["../../../outside", "{root}/outside"])
def test_manifest_names_no_file_outside_its_folder(name: str, run: Path, place: Place) -> None:
    outside = place.root / "outside"
    outside.write_text("x")
    path = (run / "last").resolve().parent / "manifest.json"
    manifest = files.read_json(path)
    manifest["files"][name.format(root=place.root)] = {"size": 1, "sha256": files.sha256(outside)}
    files.write_json(path, manifest)
    with RunFolder.open(run, resume=True, fresh=False) as folder, pytest.raises(CheckFailed, match="not a file in its"):
        folder.verify(path.parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info.pop("sha256"),
        lambda info: info.update(sites=3),
        lambda info: info.update(base=None),
        lambda info: info.update(methods=[{"name": "no-such-method", "options": {}}]),
        lambda info: info["sites"][0].update(dtype="load"),
        lambda info: info["sites"][0].update(rank=10**12),
        lambda info: info["sites"][0].update(d="x"),
        lambda info: info["sites"][0].update(unknown=1),
        lambda info: info.update(seed="x"),
    ],
)
def test_an_adapter_of_another_shape_is_refused(change: Any, run: Path) -> None:
    adapter = (run / "last").resolve()
    edit(adapter, change)
    with pytest.raises((CheckFailed, MissingError)):
        read_adapter(adapter)


def test_weights_outside_the_model_folder_are_not_read(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    base = place.root / "base"
    (base / "model.safetensors").rename(place.root / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert train(place) in (1, 5)
    assert "elsewhere" in capsys.readouterr().err
    assert not (place.root / "run").exists()


def test_nothing_is_written_beside_the_output(place: Place) -> None:
    """Every file that appears anywhere: in the run's folder or in the cache."""
    before = {path for path in place.root.rglob("*") if path.is_file()}
    place.train(*SHORT)
    assert run_command(["merge", str(place.root / "run"), "--no-verify"]) == 0
    new = {path for path in place.root.rglob("*") if path.is_file()} - before
    assert {path.relative_to(place.root).parts[0] for path in new} == {"run", "cache"}


# --- what must not reach a terminal ---


def test_control_characters_in_names_and_rows_are_written_out(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x9b2J\u202e"
    data = place.root / f"rows{evil}"
    data.mkdir()
    good = [{"prompt": f"{n}{evil}", "completion": f"{evil}{n} forty"} for n in range(8)]
    runs.write_rows(data / f"{evil}.jsonl", [*good, {evil: evil}, {"prompt": evil, "completion": 3}])
    link = place.root / "rows"
    link.symlink_to(data)
    words = (f"data={{train: {link}, on_bad_row: skip}}", *SHORT, "evaluation.every=1", "evaluation.samples=2")
    assert train(place, *words) == 0
    assert run_command(["eval", str(place.root / "run"), "--max-new-tokens", "4"]) == 0
    assert run_command(["eval", str(place.root / "run"), "--data", str(link), "--max-new-tokens", "4", "--json"]) == 0
    assert run_command(["preview", str(place.root / "recipe.yaml"), *words]) == 0
    assert train(place, f"data={link}", "output_dir=other") == 3  # bad rows are errors now
    assert run_command(["merge", str(data)]) == 2
    assert run_command(["eval", f"nowhere{evil}", "--data", str(data)]) == 5
    said = capsys.readouterr()
    for text in (
        said.out,
        said.err,
        (place.root / "run/log.txt").read_text(),
        (place.root / "run/report.md").read_text(),
    ):
        assert not (found := RAW.search(text)), text[found.start() - 80 : found.end() + 20]
    assert r"\x1b" in said.out
    assert r"\x1b" in said.err


# --- code ---


def test_remote_code_waits_for_the_key(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    base, mark = place.root / "base", place.root / "executed"
    (base / "modeling_evil.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
        "class Evil(LlamaForCausalLM):\n    config_class = EvilConfig\n"
    )
    config = files.read_json(base / "config.json")
    config |= {
        "model_type": "evil",
        "architectures": ["Evil"],
        "auto_map": {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.Evil"},
    }
    files.write_json(base / "config.json", config)
    for words in (["train"], ["check"], ["preview"]):
        assert run_command([*words, str(place.root / "recipe.yaml")]) in (1, 5)
        assert "model.trust_remote_code" in capsys.readouterr().err
    assert run_command(["eval", str(base), "--data", str(place.root / "train.jsonl")]) in (1, 5)
    assert not mark.exists()
    assert not (place.root / "run").exists()


def test_with_the_key_a_model_of_its_own_code_trains_merges_and_is_measured(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's own recipe carries the permission to merge, verify and eval; adapters and models alone have none."""
    base = place.root / "base"
    (base / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = files.read_json(base / "config.json")
    config |= {
        "model_type": "own",
        "architectures": ["Own"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"},
    }
    files.write_json(base / "config.json", config)
    run = place.train("model.trust_remote_code=true", "training.epochs=1")
    assert run_command(["merge", str(run)]) == 0
    assert run_command(["eval", str(run), "--no-generate"]) == 0
    assert run_command(["verify", str(run)]) == 0
    alone = shutil.copytree(run / "best", place.root / "alone")
    for target in (alone, run / "merged"):
        words = ["eval", str(target), "--data", str(place.root / "train.jsonl"), "--no-generate"]
        assert run_command(words) in (1, 5)
        assert "--trust-remote-code" in capsys.readouterr().err
        assert run_command([*words, "--trust-remote-code"]) == 0


def test_pickles_are_never_executed(run: Path, place: Place) -> None:
    """Trust 52. Beside everything, under the names that other tools use, and in the place of each file."""
    mark = place.root / "executed"
    hostile = pickle.dumps(Touch(mark))
    pickle.loads(hostile)
    assert mark.exists(), "else this test could not fail"
    mark.unlink()
    saved = (run / "last").resolve().parent
    for folder in (run, saved, saved / "adapter", place.root / "base"):
        for name in BESIDE:
            (folder / name).write_bytes(hostile)
    data = str(place.root / "validation.jsonl")
    assert train(place, "--resume", *SHORT, "training.max_steps=3", "--accept-changes") == 0
    assert run_command(["merge", str(run)]) == 0
    assert run_command(["eval", str(run), "--data", data, "--no-generate"]) == 0
    assert not [path for path in (run / "merged").iterdir() if path.name in BESIDE]
    for path in sorted((run / "last").resolve().iterdir()):
        if path.name not in BESIDE:
            whole = path.read_bytes()
            path.write_bytes(hostile)
            assert run_command(["eval", str(run / "last"), "--data", data]) == 4
            path.write_bytes(whole)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (place.root / "base" / name).write_bytes(hostile)
        assert train(place, "output_dir=never") in (1, 2, 5)
    assert not mark.exists()


# --- secrets, network, modes: a whole life in a process of its own ---

LIFE = """
import os, socket, sys
sys.path[:0] = sys.argv[2:]
os.umask(0o027)

class Offline(socket.socket):
    def __init__(self, *_, **__): raise RuntimeError("a socket was made")
def refuse(*_, **__): raise RuntimeError("the network was asked")
socket.socket = Offline
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse

from lrft.cli.main import run_command
root = sys.argv[1]
recipe = f"{root}/recipe.yaml"
for words in (
    ["train", recipe, "--quiet"],
    ["train", recipe, "--resume", "training.max_steps=3", "--accept-changes"],
    ["merge", f"{root}/run"],
    ["eval", f"{root}/run", "--max-new-tokens", "3"],
    ["eval", f"{root}/run/merged", "--data", f"{root}/validation.jsonl", "--max-new-tokens", "3"],
    ["check", recipe],
    ["preview", recipe],
    ["show", recipe],
    ["show", f"{root}/run", "--json"],
):
    code = run_command(words)
    assert code == 0, (words, code)
os.environ["CANARY_DIR"] += "-gone"
assert run_command(["train", recipe, "--fresh"]) in (3, 5)
assert run_command(["merge", f"{root}/run", "-o", f"{root}/again"]) == 5
"""


def test_no_secret_no_network_and_modes_from_the_umask(place: Place) -> None:
    """Trust 53. Train, resume, merge, eval without a network, with secrets in the environment and in paths."""
    hidden = place.root / CANARY
    hidden.mkdir()
    shutil.move(place.root / "base", hidden)
    shutil.move(place.root / "train.jsonl", hidden)
    (hidden / "template.jinja").write_text(tiny_tokenizers.CHATML)
    recipe = (place.root / "recipe.yaml").read_text()
    recipe = recipe.replace(str(place.root / "base"), "${CANARY_DIR}/base")
    recipe = recipe.replace("validation:", "chat_template: ${CANARY_DIR}/template.jinja\n  validation:")
    recipe = recipe.replace(str(place.root / "train.jsonl"), "${CANARY_DIR}/train.jsonl")
    (place.root / "recipe.yaml").write_text(
        recipe.replace("epochs: 2", "max_steps: 2").replace("every: none", "every: 1")
    )
    secrets = ("CANARY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "OPENAI_API_KEY", "PASSWORD")
    environment = {**os.environ, **dict.fromkeys(secrets, CANARY), "CANARY_DIR": str(hidden), "OMP_NUM_THREADS": "1"}
    environment |= {"LRFT_CACHE": str(place.root / "cache"), "TMPDIR": str(place.root / "tmp")}
    (place.root / "tmp").mkdir()
    paths = [str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(
        [sys.executable, "-c", LIFE, str(place.root), *paths],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "${CANARY_DIR}/train.jsonl" in done.stdout
    for line in (done.stdout + done.stderr).splitlines():
        # What wraps in a table would hide from a search for the whole.
        assert CANARY not in line, line
    told = [*(place.root / "run").rglob("*"), *(place.root / "tmp").rglob("*")]
    assert len(told) > 30
    for path in told:
        assert CANARY not in path.name
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    for path in [*(place.root / "run").rglob("*"), *(place.root / "cache" / "data").rglob("*")]:
        if not path.is_symlink():
            assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path
