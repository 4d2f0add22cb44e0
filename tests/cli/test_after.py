"""`after` of a recipe: commands that follow a training, what is said of them before it, and what a failure leaves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs

from lrft.cli import after
from lrft.cli.main import run_command
from lrft.errors import RecipeError
from lrft.runs.after_training import commands, kept, shown


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runs.Place]:
    root = tmp_path_factory.mktemp("after")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRFT_CACHE", str(root / "cache"))
        yield runs.Place.make(root)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands as they are run: in this process, which has imported what they need."""
    begun: list[list[str]] = []

    def start(words: list[str], *, quiet: bool) -> int:
        begun.append(list(words))
        return run_command(list(words))

    monkeypatch.setattr(after, "start", start)
    return begun


def train(place: runs.Place, out: str, *words: str) -> int:
    return run_command(["train", str(place.root / "recipe.yaml"), f"output_dir={place.root / out}", *words])


def test_all_commands_follow_in_order_and_stand_in_the_pages(
    place: runs.Place, here: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = str(place.root / "whole"), str(place.root / "validation.jsonl")
    asked = f"after={{eval: {data}, merge: true, export: [peft, {{lora: {{rank: 2, tolerance: 9.0}}}}]}}"
    assert train(place, "whole", asked, "logging.report=[markdown, html]") == 0
    assert here == [
        ["merge", run],
        ["export", run, "--to", "peft"],
        ["export", run, "--to", "lora", "rank=2", "tolerance=9.0"],
        ["eval", run, "--data", data],
    ]
    assert (Path(run) / "merged" / "config.json").is_file()
    assert {path.name for path in (Path(run) / "export").iterdir()} == {"peft", "lora"}
    assert [one.exit_code for one in kept(Path(run))] == [0, 0, 0, 0]
    printed = capsys.readouterr().out
    assert printed.count(f"lrft merge {run}") >= 3  # before the training, when it begins, and at the end
    for page in ("report.md", "report.html"):
        text = (Path(run) / page).read_text()
        assert "After training" in text
        assert "lrft export" in text
    here.clear()
    assert train(place, "whole", asked, "logging.report=[markdown, html]", "--resume") == 0
    assert here == []  # all is done already


def test_a_failure_leaves_the_run_whole_is_named_with_its_command_and_is_done_again_by_resume(
    place: runs.Place, here: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = place.root / "blocked"
    asked = f"after={{merge: true, eval: {place.root / 'validation.jsonl'}}}"
    assert train(place, "blocked", "after=null") == 0
    (run / "merged").mkdir()
    (run / "merged" / "notes.txt").touch()
    before = runs.tensors(run)
    capsys.readouterr()
    assert train(place, "blocked", asked, "--resume") == 8
    said = capsys.readouterr().err
    assert "the run is whole, but 1 command of `after` failed or did not begin\n" in said
    assert f"Repeat by hand what is left:\n  lrft merge {run}\n" in said
    assert [one.exit_code for one in kept(run)] == [2, 0]
    assert "failed, exit code 2" in (run / "report.md").read_text()
    assert not runs.differing(before, runs.tensors(run))
    shutil.rmtree(run / "merged")
    here.clear()
    assert train(place, "blocked", asked, "--resume") == 0
    assert here == [["merge", str(run)]]


def test_a_command_that_is_stopped_ends_the_others(
    place: runs.Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(after, "start", lambda words, quiet: 143)
    assert train(place, "stopped", "after={merge: true, export: peft}", "--quiet") == 8
    assert [one.exit_code for one in kept(place.root / "stopped")] == [143]
    assert "2 commands of `after` failed or did not begin" in capsys.readouterr().err


def test_a_command_is_a_process_of_its_own_outside_the_others_of_the_training(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")  # with which errors of use are left to the first process
    assert after.start(["methods", "show", "lora"], quiet=False) == 0
    assert "lora" in capfd.readouterr().out
    assert after.start(["methods", "nothing-like-it"], quiet=True) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "nothing-like-it" in err
    assert os.environ["RANK"] == "1"


def test_what_is_pushed_is_what_after_makes(place: runs.Place) -> None:
    def last(*keys: str) -> list[str]:
        return commands(place.recipe("after.push=me/first", *keys), "RUN")[-1]

    assert last() == ["push", "RUN", "--to", "me/first"]
    assert last("after.merge=true", "after.push_from=merged") == ["push", "RUN/merged", "--to", "me/first"]
    gguf = ("after.export=[{gguf: {dtype: q8_0}}]", "after.push_from=gguf")
    assert last(*gguf) == ["push", "RUN/export/gguf", "--to", "me/first"]
    assert commands(place.recipe("after.push=me/first", *gguf), "RUN")[0][-1] == "dtype=q8_0"


def test_what_came_from_the_environment_is_shown_by_its_name(
    place: runs.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "/somewhere/secret")
    recipe = place.recipe("after.eval=${PLACE}/test.jsonl", "output_dir=${PLACE}/run")
    assert shown(recipe) == ['lrft eval "${PLACE}"/run --data "${PLACE}"/test.jsonl']
    assert commands(recipe, recipe.output_dir)[0][-1] == "/somewhere/secret/test.jsonl"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            ["after.export=[ggfu]"],
            "gguf, gguf-lora, lora, merged, ollama or peft; got 'ggfu'. Did you mean gguf?",
        ),
        (["after.export=[{gguf: {dtype: q4}}]"], "after.export"),
        (["after.export=[peft, {lora: {rank: 2}}, peft]"], "after.export: peft is listed twice"),
        (["after.push=first"], "after.push: expected OWNER/NAME, a repository of the hub; got the text 'first'"),
        (["after.push=a/b", "after.push_from=merged"], "after.push_from: expected adapter; got 'merged'"),
        (["after.merge=true", "after.push_from=merged"], "after.push_from has no effect"),
        (["after.merged=true"], "merge"),
        (["after.eval=[]", "after.merge=3"], "after.merge"),
    ],
)
def test_mistakes_are_found_in_the_recipe(place: runs.Place, keys: list[str], says: str) -> None:
    with pytest.raises(RecipeError) as error:
        place.recipe(*keys)
    assert says in error.value.message


@pytest.mark.parametrize(
    ("keys", "code", "says"),
    [
        (
            ["after.push=me/first"],
            5,
            "after.push: there is no token of the hub here\nLog in: hf auth login",
        ),
        (["after.eval=gone.jsonl"], 3, "gone.jsonl: no such file"),
        (["after.export=[gguf]"], 5, "--to gguf requires llama.cpp's converter"),
    ],
)
def test_check_and_train_refuse_before_the_first_step_what_could_not_be_done_at_the_end(
    place: runs.Place,
    keys: list[str],
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    for command in ("check", "train"):
        assert run_command([command, str(place.root / "recipe.yaml"), *keys]) == code
        assert says in capsys.readouterr().err
    assert not (place.root / "run").exists()


@pytest.mark.parametrize(
    ("adapter", "keys", "says"),
    [
        ("mora", ["after.export=[peft]"], "after.export: peft: stock PEFT cannot represent this method"),
        ("goat", ["after.merge=true"], "after.merge: goat cannot be merged"),
        ("goat", ["after.export=[{lora: {rank: 2}}]"], "after.export: lora: goat cannot be merged"),
    ],
)
def test_what_the_adapter_cannot_become_is_refused_before_the_first_step(
    place: runs.Place, adapter: str, keys: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(place, "impossible", f"adapter.method={adapter}", "adapter.rank=8", *keys) == 2
    assert says in capsys.readouterr().err
    assert not (place.root / "impossible").exists()


def test_check_plan_and_the_dry_run_show_the_commands(place: runs.Place, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["check"], ["plan"], ["train", "--dry-run"]):
        recipe = str(place.root / "recipe.yaml")
        assert run_command([words[0], recipe, "after={merge: true, export: peft}", *words[1:]]) == 0
        assert f"lrft export {place.root / 'run'} --to peft" in " ".join(capsys.readouterr().out.split())


def test_a_comparison_has_none(place: runs.Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "compare.yaml"
    recipe = f"{{extends: {place.root / 'recipe.yaml'}, after: {{merge: true}}}}"
    file.write_text(f"recipe: {recipe}\nruns: {{lora: lora, mora: mora}}\noutput_dir: {tmp_path / 'out'}\n")
    assert run_command(["compare", str(file)]) == 2
    assert "after: its commands follow one training" in capsys.readouterr().err


def test_the_record_survives_what_it_is_not(tmp_path: Path) -> None:
    for broken in ("{", "[1]", json.dumps([{"command": "x"}])):
        (tmp_path / "after_training.json").write_text(broken)
        assert kept(tmp_path) == []
