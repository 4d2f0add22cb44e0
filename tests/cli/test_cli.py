"""The command line: what is printed, on which stream, with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from docgen import pages

import lrft
from lrft import recipe as recipes
from lrft import registry
from lrft.cli import main
from lrft.cli.main import run_command, spell_resume
from lrft.compare import config as comparison

ROOT = Path(lrft.__file__).parents[1]
GOOD = "model: some/model\ndata: train.jsonl\nadapter: {method: [pissa, lora+], rank: 4}\noutput_dir: runs/a\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "nowhere"],
        ["export", "nowhere", "--to", "gguf"],
        ["inspect", "nowhere"],
        ["verify", "nowhere"],
        ["combine", "nowhere", "there", "-o", "out"],
        ["compare", "--suggest", "qualty"],
    ],
)
def test_wrong_paths_are_answered_before_torch_is_loaded(words: list[str], tmp_path: Path) -> None:
    code = f"import sys; from lrft.cli.main import run_command; run_command({words}); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["trian", "recipe.yaml"],
        ["train"],
        ["train", "recipe.yaml", "--unknown"],
        ["merge", "nowhere"],
        ["merge", "nowhere", "--dtype", "int3"],
        ["methods", "show", "lroa"],
        ["methods", "lora"],
        ["methods", "--kind", "none-such"],
        ["train", "no-such-file.yaml"],
        ["train", "no-such-file.yaml", "--resume", "--fresh"],
        ["schema", "adapter.rnak"],
        ["preview", "no-such-file.yaml", "--split", "test"],
        ["init"],
        ["init", "--model", "a/b"],
        ["chat"],
        ["serve"],
        ["generate", "run"],
        ["push", "run", "--to", "no-owner"],
        ["init", "--model", "a/b", "--data", "d.jsonl", "--method", "mroa"],
        ["init", "no-such-folder/recipe.yaml", "--model", "a/b", "--data", "d.jsonl"],
    ],
)
def test_wrong_use_is_exit_code_2_and_one_plain_message(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(words) == 2
    said = capsys.readouterr()
    assert said.err
    assert "Traceback" not in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["merge", "run", "--dtype", "int3"], "--dtype must be one of float32, bfloat16, float16 (got int3)"),
        (["merge", "run", "--into", "x"], "--into must be one of original, dequantized (got x)"),
        (["preview", "recipe.yaml", "--split", "test"], "--split must be one of train, validation (got test)"),
        (["methods", "--kind", "x"], "--kind must be one of "),
    ],
)
def test_a_value_that_is_no_choice_names_the_choices(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(words) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_recipe_names_every_place(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(GOOD.replace("rank: 4", "rnak: 4") + "lora_r: 8\n")
    for command in ("train", "check", "show", "preview"):
        assert run_command([command, str(recipe)]) == 2
        said = capsys.readouterr().err
        assert f"{recipe}:3:" in said
        assert "Did you mean rank?" in said
        assert f"{recipe}:5:1" in said
        assert "adapter.rank" in said
        assert "2 problems. Nothing was started." in said


def test_a_wrong_override_is_named_by_its_number(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["show", str(recipe), "adapter.rank=8", "adapter.alhpa=3"]) == 2
    said = capsys.readouterr().err
    assert "argument 2" in said
    assert "alpha" in said


def test_show_prints_a_recipe_that_means_the_same(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["show", str(recipe), "training.seed=7"]) == 0
    shown = recipe.with_name("shown.yaml")
    shown.write_text(capsys.readouterr().out)
    assert recipes.load(shown) == recipes.load(recipe, ("training.seed=7",))


def test_show_json(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["show", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapter"]["rank"] == 4


def test_check_static_needs_no_model(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["check", str(recipe), "--static"]) == 0
    assert "recipe OK (model and data not checked" in capsys.readouterr().out


def test_a_run_folder_stands_for_its_recipe(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recipe.parent / "run"
    run.mkdir()
    assert run_command(["show", str(run)]) == 2
    assert "resolved.yaml" in capsys.readouterr().err
    (run / "resolved.yaml").write_text(recipes.resolved(recipes.load(recipe), {}))
    assert run_command(["show", str(run)]) == 0


def test_schema_is_json_and_explains_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["schema"]) == 0
    assert "properties" in json.loads(capsys.readouterr().out)
    assert run_command(["schema", "adapter.rank"]) == 0
    assert "16" in capsys.readouterr().out


def test_methods_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["methods"]) == 0
    listed = capsys.readouterr().out
    for name, card in registry.methods().items():
        group = next(block for block in listed.split("\n\n") if block.startswith(f"{card.kind}\n"))
        assert f"\n  {name} " in group
    for name in registry.PRESETS:
        assert f"\n  {name} " in listed
    assert run_command(["methods", "--json", "--kind", "wrapper"]) == 0
    assert {card["name"] for card in json.loads(capsys.readouterr().out)} == {"dora"}
    assert run_command(["methods", "show", "lora+"]) == 0
    said = capsys.readouterr().out
    assert "ratio = 16.0" in said
    assert "mora" in said, "what it cannot be combined with, with the reason"


def test_resume_alone_means_the_last_checkpoint() -> None:
    assert spell_resume(["train", "r.yaml", "--resume"]) == ["train", "r.yaml", "--resume=last"]
    assert spell_resume(["train", "r.yaml", "--resume", "a.b=1"])[2] == "--resume=last"
    assert spell_resume(["train", "r.yaml", "--resume", "best"]) == ["train", "r.yaml", "--resume", "best"]
    assert spell_resume(["train", "--resume", "--quiet", "r.yaml"])[1] == "--resume=last"


def test_a_bug_keeps_its_traceback_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = typer.Typer()

    @broken.command()
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(main, "app", broken)
    assert run_command([]) == 1
    said = capsys.readouterr().err
    file = Path(said.split("The traceback is in ")[1].split(";")[0])
    assert "ZeroDivisionError: a bug" in file.read_text()
    file.unlink()


def test_a_reader_that_leaves_is_no_failure() -> None:
    """`lrft schema | head -1`: no traceback."""
    command = f"{sys.executable} -m lrft schema | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600, env=dict(os.environ))
    assert done.stderr == ""


def test_generated_pages_are_fresh() -> None:
    root = Path(pages.__file__).parents[2]
    for path, text in pages.pages(root).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run scripts/docs"


@pytest.mark.parametrize(
    "path", sorted(Path(pages.__file__).parents[2].glob("recipes/**/*.yaml")), ids=lambda p: p.name
)
def test_recipes_that_ship_are_accepted(path: Path) -> None:
    if "\nruns:" in path.read_text(encoding="utf-8"):
        comparison.read(path)
    else:
        recipes.load(path)


def test_what_is_imported_is_never_looked_at_for_garbage(recipe: Path) -> None:
    """A quarter of the time before the first step; the collector is on again for what is made afterwards."""
    recipe.write_text(GOOD.replace("some/model", str(recipe.parent / "nowhere")))
    program = (
        "import atexit, gc, sys\n"
        "from lrft.cli.main import main\n"
        "atexit.register(lambda: print('torch' in sys.modules, gc.get_freeze_count() > 100_000, gc.isenabled()))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "check", str(recipe)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(main.__file__).parents[2])},
        timeout=600,
    )
    assert (done.returncode, done.stdout) == (5, "True True True\n"), done.stderr


def test_an_unknown_command_is_answered_with_a_near_one_or_with_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["trian"]) == 2
    assert "Did you mean train?" in capsys.readouterr().err
    assert run_command(["xyzzy"]) == 2
    said = capsys.readouterr().err
    assert "Did you mean" not in said
    assert "Commands: quickstart, init, check" in said
