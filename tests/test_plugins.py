"""docs/examples/plugin as an installed package: listed without torch, trained with, resumed, exported, and missed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place

import lrft
from lrft import registry
from lrft.adapters.storage import read_adapter
from lrft.cli.main import run_command
from lrft.errors import DataError, LrftError, MissingError, RecipeError
from lrft.objectives.sft import Sft
from lrft.registry.methods import cards_in
from lrft.utils import files

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "plugin"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KINDS = ("methods", "objectives", "optimizers", "trackers", "metrics", "exporters")
ALL = (
    "adapter.method=group-mean",
    "training.objective={focal: {gamma: 1.5}}",
    "training.optimizer=radam",
    "logging.report_to=[loss-csv]",
    "evaluation.metrics=[{answer-words: {floor: 2}}]",
)


def put(site: Path) -> Path:
    """`site` with what pip would put there for the example; returns the folder of its modules."""
    package = site / "lrft_example"
    shutil.copytree(EXAMPLE / "lrft_example", package, ignore=shutil.ignore_patterns("__pycache__"))
    information = site / f"lrft_example-{PROJECT['version']}.dist-info"
    information.mkdir()
    name, version = PROJECT["name"], PROJECT["version"]
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in PROJECT["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return package


def look_again() -> None:
    """Forget what was read of declarations and imported of the example."""
    registry.declared.cache_clear()
    cards_in.cache_clear()
    for module in [name for name in sys.modules if name.partition(".")[0] == "lrft_example"]:
        del sys.modules[module]


@pytest.fixture
def package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example, installed for one test."""
    site = tmp_path_factory.mktemp("site")
    found = put(site)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(site)
        look_again()
        yield found
    look_again()


def test_there_is_one_of_each_kind(package: Path) -> None:
    assert (
        set(PROJECT["entry-points"])
        == {f"lrft.{kind}" for kind in KINDS}
        == {f"lrft.{kind}" for kind in ("methods", *registry.ROOMS)}
    )
    for kind in KINDS:
        cards: Any = registry.methods() if kind == "methods" else registry.declared(kind)
        (name,) = PROJECT["entry-points"][f"lrft.{kind}"]
        assert cards[name].package == "lrft-example 0.1.0"
        assert cards[name].summary
        assert all(knob.help for knob in cards[name].knobs)
        assert cards[name].load().name == name


def test_listing_and_checking_import_neither_torch_nor_the_package(tmp_path: Path) -> None:
    """In a fresh process, with a package whose modules would fail."""
    package = put(tmp_path)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: a/model\ndata: train.jsonl\nadapter: lora\noutput_dir: run\n")
    code = (
        "import sys; from lrft.cli.main import run_command as run; "
        f"codes = run(['methods', 'show', 'group-mean']), run(['check', '--static', {str(recipe)!r}, *{ALL!r}]);"
        "sys.exit(' '.join({'torch', 'lrft_example'} & set(sys.modules)) or any(codes))"
    )
    places = os.pathsep.join([str(tmp_path), str(Path(lrft.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "lrft-example 0.1.0" in done.stdout
    assert "recipe OK" in done.stdout


def test_the_list_of_methods_says_whose_each_is(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["methods", "--kind", "parametrization"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert "group-mean Averages r groups of neighbouring inputs" in listed
    assert listed.count("(lrft-example 0.1.0)") == 1


def test_a_run_with_all_of_them_resumes_exactly_and_is_exported(package: Path, place: Place) -> None:
    keys = (*ALL, "checkpoint.every=3", "evaluation.every=3", "evaluation.max_new_tokens=3")
    straight = place.train(*keys, out="straight")
    scores = [record["figures"]["answer-words"] for record in runs.records(straight, "eval")]
    assert len(scores) == 2
    assert all(0 <= score < 1 for score in scores)  # three tokens are no whole answer
    records = runs.records(straight)
    table = (straight / "loss.csv").read_text().splitlines()
    assert table == ["step,loss", *(f"{record['step']},{record['loss']}" for record in records)]
    assert len(records) == runs.STEPS
    assert all(0 <= record["figures"]["accuracy"] <= 1 for record in records)
    stopped = runs.cut(straight, 3, place.root / "stopped")
    place.train(*keys, out="stopped", resume="last")
    assert runs.differing(runs.tensors(straight), runs.tensors(stopped)) == []
    assert (stopped / "loss.csv").read_text().splitlines() == table
    state = {name.rpartition("/")[2] for name in runs.tensors(straight) if "optimizer" in name}
    assert {"exp_avg", "exp_avg_sq", "step"} <= state

    saved = read_adapter(straight / "last")
    exporter = registry.declared("exporters")["update"].load()()
    said = exporter.export(saved, place.root / "base", place.root / "update")
    assert said == [f"{len(saved.sites)} updates"]
    updates = files.read_tensors(place.root / "update" / "update.safetensors")
    for site in saved.sites:
        B = saved.tensors[site.name]["B"]
        of_input = [column * site.rank // site.k for column in range(site.k)]
        dense = torch.stack([site.scale * B[:, g] / of_input.count(g) for g in of_input], dim=1)
        assert torch.allclose(updates[site.name], dense, atol=1e-7)
        assert dense.abs().max() > 0
    assert run_command(["merge", str(straight)]) == 0


def test_the_example_of_a_method_keeps_what_every_method_keeps(package: Path) -> None:
    model = tiny.make("gpt2")
    ids = tiny.tokens()
    before = tiny.logits(model, ids)
    handle = lrft.attach(model, {"method": "group-mean", "rank": 5})
    assert torch.equal(tiny.logits(model, ids), before)
    assert sum(p.numel() for p in handle.trained().values()) == sum(5 * site.d for site in handle.sites)
    one, attached = tiny.layer("group-mean", 7, 11)
    tiny.disturb(list(attached.trained().values()))
    P = torch.zeros(4, 11, dtype=torch.float64)
    for group, members in enumerate(((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10))):
        P[group, list(members)] = 1 / len(members)
    B = attached.modules["0"].B
    assert tiny.same_function(one, attached, 2.0 * B @ P)


def test_the_example_of_an_objective_is_its_formula(package: Path) -> None:
    model = tiny.make("llama")
    labels = tiny.tokens(seed=3)
    labels[:, :4] = -100
    batch = {"input_ids": tiny.tokens(), "labels": labels}
    focal = registry.declared("objectives")["focal"].load()
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits[:, 3:-1].flatten(0, 1)
        p = logits.softmax(-1).gather(1, labels[:, 4:].reshape(-1, 1))
        module, right = focal(gamma=2.0).module(model), logits.argmax(-1) == labels[:, 4:].flatten()
        assert torch.allclose(module(batch), (-((1 - p) ** 2) * p.log()).sum())
        assert focal().figures(module.sums) == {"accuracy": pytest.approx(right.double().mean().item())}
        assert torch.allclose(focal(gamma=0.0).module(model)(batch), Sft().module(model)(batch))


def test_a_method_that_adds_to_the_loss_is_refused_beside_an_objective_that_drops_it(
    package: Path, place: Place
) -> None:
    runs.write_rows(place.root / "weighted.jsonl", [{**row, "weight": 2} for row in runs.rows(4)])
    with pytest.raises(DataError, match=r"column weight, which training\.objective: focal does not count"):
        place.train(f"data.train={place.root}/weighted.jsonl", "training.objective=focal")
    with pytest.raises(RecipeError, match=r"adds to the loss, which training\.objective: focal does not take up"):
        place.train("adapter.method=[lora, ba-lora]", "training.objective=focal")


def test_an_adapter_names_the_package_that_it_needs(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = place.root / "site"
    put(site)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(site)
        look_again()
        run = place.train(ALL[0], "training.max_steps=1")
        adapter = shutil.copytree(run / "last", place.root / "adapter")
    look_again()
    for command in (
        ["merge", str(adapter), "-o", str(place.root / "out")],
        ["eval", str(adapter)],
        ["inspect", str(adapter)],
    ):
        assert run_command(command) == 5
        said = capsys.readouterr().err
        assert "the method group-mean: lrft-example 0.1.0 brings it" in said
        assert "Traceback" not in said
    assert run_command(["check", str(place.root / "recipe.yaml"), "--static", ALL[0]]) == 2
    assert "'group-mean' is not a method" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind: ClassVar[str] = "parametrization"', "", "does not declare kind"),
        ('("update",)', '("updates",)', "slots names updates"),
        ('"group-mean"', '"lora"', "the name lora is also that of lora.py"),
        ("def alpha(", "def alpha)", "group_mean.py"),
    ],
)
def test_a_broken_package_is_named_without_a_traceback(
    package: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    source = package / "group_mean.py"
    assert old in source.read_text()
    source.write_text(source.read_text().replace(old, new))
    assert run_command(["methods"]) == 1
    shown = capsys.readouterr().err
    assert "lrft-example 0.1.0: " in shown
    assert said in shown
    assert "uninstall lrft-example" in shown
    assert "Traceback" not in shown


def test_an_entry_point_without_a_module_is_named(package: Path) -> None:
    for lost in ("group_mean.py", "__init__.py"):
        (package / lost).unlink()
    shutil.rmtree(package)
    with pytest.raises(LrftError, match=r"lrft-example 0.1.0: the entry point group-mean of lrft.methods names"):
        registry.methods()


def test_a_package_that_cannot_be_imported_is_named(package: Path) -> None:
    source = package / "radam.py"
    source.write_text(source.read_text().replace("import torch\n", "import torch_that_is_not_there as torch\n"))
    with pytest.raises(MissingError, match=r"radam: lrft-example 0.1.0 cannot be imported: .*torch_that_is_not_there"):
        registry.declared("optimizers")["radam"].load()


def test_another_optimizer_is_refused_where_it_would_not_be_the_one(package: Path, place: Place) -> None:
    for keys, said in (
        (("adapter.method=galore",), "galore brings its own optimiser, which radam cannot replace"),
        (("distributed.strategy=zero2",), "zero2 needs adamw"),
    ):
        with pytest.raises(RecipeError, match=f"training.optimizer: .*{said}"):
            place.recipe("training.optimizer=radam", *keys)
    assert place.recipe("training.optimizer=radam", "adapter.method=dora").training.optimizer.name == "radam"
