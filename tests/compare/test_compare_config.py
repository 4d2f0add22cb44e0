"""The file of a comparison: what is accepted and what it means, and what a mistake is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lrft
from lrft import recipe as recipes
from lrft.cli.main import run_command
from lrft.compare import config as files
from lrft.compare.config import Comparison, read
from lrft.compare.jobs import make_jobs, write_recipe
from lrft.errors import RecipeError, UsageError

BASE = "model: some/model\ndata: train.jsonl\nadapter: {method: {mora: {type: 1}}, rank: 4}\noutput_dir: runs/base\n"
GOOD = """\
recipe: base.yaml
runs:
  lora:
  both: [pissa, rslora]
  six: {mora: {type: 6}}
  own: {adapter: {method: lora+, rank: 7}, training.learning_rate: [1e-5, 2e-5, 1e-3]}
  base: {}
grid:
  training.learning_rate: [1e-3, 1e-2]
  training.weight_decay: [0, 0.1]
seeds: [0, 5]
output_dir: out
"""


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str = GOOD, base: str = BASE) -> Path:
        (tmp_path / "base.yaml").write_text(base)
        path = tmp_path / "compare.yaml"
        path.write_text(text)
        return path

    return written


def problems(path: Path) -> list[tuple[str, str]]:
    """(line:column or another place, text) of each."""
    with pytest.raises(RecipeError) as caught:
        read(path)
    return [(p.place.removeprefix(f"{path}:"), p.text) for p in caught.value.problems]


def recipe_of(comparison: Comparison, name: str, point: int = 0):
    variant = next(v for v in comparison.variants if v.name == name)
    return variant.recipe(variant.points[point], seed=5, output=Path("here"))[0]


def test_what_a_good_file_means(write) -> None:
    comparison = read(write())
    assert [(v.name, len(v.points)) for v in comparison.variants] == [
        ("lora", 4), ("both", 4), ("six", 4), ("own", 6), ("base", 4),
    ]  # fmt: skip
    assert (comparison.seeds, comparison.budget, comparison.baseline) == ((0, 5), "parameters", "lora")
    assert (comparison.metric, comparison.forgetting, comparison.output) == ("loss", None, Path("out"))
    methods = {v.name: [e.name for e in recipe_of(comparison, v.name).adapter.method] for v in comparison.variants}
    assert methods == {
        "lora": ["lora"], "both": ["pissa", "rslora"], "six": ["mora"], "own": ["lora+"], "base": ["mora"],
    }  # fmt: skip
    assert recipe_of(comparison, "six").adapter.method[0].options["type"] == 6
    assert recipe_of(comparison, "base").adapter.method[0].options["type"] == 1
    own = recipe_of(comparison, "own", point=5)
    assert (own.training.learning_rate, own.training.weight_decay, own.adapter.rank) == (1e-3, 0.1, 7)
    assert (own.training.seed, own.output_dir) == (5, "here")
    assert [v.gives_rank for v in comparison.variants] == [False, False, False, True, False]


def test_a_recipe_may_stand_in_the_file_and_extend_another(write) -> None:
    text = GOOD.replace("recipe: base.yaml", "recipe: {extends: base.yaml, training: {epochs: 9}}")
    found = recipe_of(read(write(text)), "lora")
    assert (found.training.epochs, found.model.name) == (9, "some/model")
    with pytest.raises(RecipeError, match="extends itself"):
        read(write(GOOD.replace("recipe: base.yaml", "recipe: {extends: compare.yaml, data: x, model: y}")))


def test_runs_may_be_a_list_of_methods(write) -> None:
    comparison = read(write("recipe: base.yaml\nruns: [lora, dora, remora]\noutput_dir: out\n"))
    assert [v.name for v in comparison.variants] == ["lora", "dora", "remora"]
    assert comparison.seeds == (1, 2, 3)
    assert [v.points[0].plain() for v in comparison.variants] == [{}, {}, {}]


def test_the_recipe_of_a_run_is_written_as_it_was_given(write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what was given is written: what is left open stays open. References stay references."""
    monkeypatch.setenv("WHERE", "a-secret-place")
    comparison = read(write(base=BASE.replace("train.jsonl", "${WHERE}/train.jsonl")))
    jobs = make_jobs(comparison, [(n + 1, "budget") for n in range(22)])
    assert len({job.folder for job in jobs}) == len(jobs) == 44
    assert [job.seed for job in jobs] == [0] * 22 + [5] * 22
    for job in (jobs[0], jobs[9], jobs[30]):
        text = job.text
        job.beside(".yaml").parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(comparison.path.parent)
        write_recipe(job)
        assert recipes.load(job.beside(".yaml")) == job.recipe
        assert "a-secret-place" not in text
        assert "max_length" not in text
        assert "epochs" not in text


def test_folders_do_not_depend_on_the_rest_of_the_grid(write) -> None:
    def folders(text: str) -> set[str]:
        return {str(point.folder) for variant in read(write(text)).variants for point in variant.points}

    more = folders(GOOD.replace("[1e-3, 1e-2]", "[5e-4, 1e-3, 0.01]"))
    assert folders(GOOD) < more


def test_odd_values_have_names_too(write) -> None:
    lists = "adapter.target_modules: [all-linear, [q_proj], [q_proj, v_proj]]"
    text = GOOD.replace("training.weight_decay: [0, 0.1]", lists)
    names = [str(point.folder) for point in read(write(text)).variants[0].points]
    assert all(Path(name).parts[1].startswith("target_modules-") for name in names)
    assert len(set(names)) == 6


# What is changed in GOOD, and where and what is told.
BAD = {
    "an unknown key": (("seeds:", "seedz:"), "11:1", "seedz is not a key. Did you mean seeds?"),
    "a recipe's key": (("seeds:", "model: x\nseeds:"), "11:1", "put it under recipe"),
    "a baseline that is no run": (("seeds:", "baseline: lorra\nseeds:"), "11:11", "Did you mean lora?"),
    "an empty list": (("[1e-3, 1e-2]", "[]"), "9:27", "the list is empty"),
    "an empty grid": (
        ("grid:\n  training.learning_rate: [1e-3, 1e-2]\n  training.weight_decay: [0, 0.1]", "grid: {}"),
        "8:7",
        "or no grid at all",
    ),
    "no list": (("[1e-3, 1e-2]", "1e-3"), "9:27", "expected a list of values"),
    "a value twice": (("[1e-3, 1e-2]", "[1e-3, 0.001]"), "9:34", "0.001 is listed twice"),
    "a grid key that is none": (("training.weight_decay:", "training.wieght_decay:"), "10:3", "mean weight_decay?"),
    "a value that does not fit": (("[0, 0.1]", "[0, fast]"), "10:30", "expected a number, got the text 'fast'"),
    "a run twice": (("  base: {}", "  lora: {}"), "7:3", "lora is given twice: lines 3 and 7"),
    "an unknown method": (("[pissa, rslora]", "[pissa, rslroa]"), "4:17", "Did you mean rslora?"),
    "a run that is no method": (("  lora:\n", "  loraa:\n"), "3:3", "'loraa' is not a method. Did you mean lora?"),
    "a conflict": (("[pissa, rslora]", "[pissa, milora]"), "4:17", "pissa and milora both set the init of A and B"),
    "an unknown key in a run": (("rank: 7", "rnak: 7"), "6:34", "adapter.rnak is not a key. Did you mean rank?"),
    "a run's own seed": (("  base: {}", "  base: {training.seed: 3}"), "7:25", "set it with seeds"),
    "a run's own folder": (("  base: {}", "  base: {output_dir: x}"), "7:22", "each run has its own folder"),
    "the grid's key in another spelling": (
        ("  base: {}", "  base: {training: {learning_rate: 3}}"),
        "7:36",
        "write training.learning_rate: [...]",
    ),
    "a method in the grid": (("training.weight_decay", "adapter.method"), "10:3", "methods are set under runs"),
    "a rank in the grid": (("training.weight_decay", "adapter.rank"), "10:3", "set budget: none"),
    "a seed in the grid": (("training.weight_decay", "training.seed"), "10:3", "set it with seeds"),
    "a wrong budget": (("seeds:", "budget: parameter\nseeds:"), "11:9", "Did you mean parameters?"),
    "a wrong metric": (("seeds:", "metric: exact-match\nseeds:"), "11:9", "Did you mean exact_match?"),
    "a metric of another objective": (
        ("seeds:", "metric: reward accuracy\nseeds:"),
        "11:9",
        "reward accuracy is no figure of training.objective: sft. There: loss, perplexity, exact_match",
    ),
    "losses of two kinds": (
        ("  base: {}", "  base: {training.objective: dpo}"),
        "1:1",
        "the loss of sft and dpo are not the same quantity. They share: exact_match",
    ),
    "a seed twice": (("[0, 5]", "[5, 5]"), "11:12", "5 is listed twice"),
    "a seed that is no number": (("[0, 5]", "[0, x]"), "11:12", "whole numbers"),
    "no such recipe": (("base.yaml", "bsae.yaml"), "1:9", "there is no such file"),
    "no such text": (("seeds:", "forgetting: nowhere.txt\nseeds:"), "11:13", "there is no file nowhere.txt"),
    "no output": (("output_dir: out\n", ""), "1:1", "output_dir is required"),
    "a name with a slash": (("  base: {}", "  a/b: {}"), "7:3", "is not a valid run name"),
    "too many runs": (("[0, 5]", f"{list(range(200))}"), "9:3", "at most 1,000"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_told_with_its_place(write, case: str) -> None:
    (old, new), place, words = BAD[case]
    assert old in GOOD
    found = problems(write(GOOD.replace(old, new)))
    assert [at for at, text in found if words in text] == [place], found


def test_only_what_the_objective_has_can_be_the_metric(write) -> None:
    base = BASE + "training: {objective: dpo}\n"
    ((place, text),) = problems(write(GOOD.replace("seeds:", "metric: perplexity\nseeds:"), base))
    assert (place, text.startswith("metric: perplexity is no figure of training.objective: dpo. There: loss")) == (
        "11:9",
        True,
    )
    comparison = read(write(GOOD.replace("seeds:", "metric: reward accuracy\nseeds:"), base))
    assert (comparison.metric, comparison.lower_is_better) == ("reward accuracy", False)
    labels = BASE + "training: {objective: classification}\n"
    assert read(write(GOOD.replace("seeds:", "metric: MSE\nseeds:"), labels)).lower_is_better


NOLA = "{nola: {basis: 64}}"


@pytest.mark.parametrize("run", [NOLA, f"{{adapter.method: {NOLA}}}", f"{{adapter: {{method: {NOLA}}}}}"])
def test_a_method_takes_the_place_of_the_recipes_own(write, run: str) -> None:
    """Its options too: maps would be merged otherwise."""
    comparison = read(write(f"recipe: base.yaml\nruns: {{a: {run}}}\noutput_dir: out\n"))
    assert [(e.name, e.options["basis"]) for e in recipe_of(comparison, "a").adapter.method] == [("nola", 64)]
    assert recipe_of(comparison, "a").adapter.rank == 4


@pytest.mark.parametrize(
    ("run", "methods"),
    [
        ("dora: {adapter.rank: 2}", ["dora"]),
        ("dora: {adapter: {rank: 2}}", ["dora"]),
        ("dora: {training.learning_rate: 0.5}", ["dora"]),
        ("dora: {adapter.method: [dora, pissa]}", ["dora", "pissa"]),
        ("dora: {adapter: {method: lora}}", ["lora"]),
        ("dora: {adapter: lora}", ["lora"]),
        ("dora: {}", ["mora"]),
        ("mine: {adapter.rank: 2}", ["mora"]),
    ],
)
def test_a_run_with_the_name_of_a_method_trains_it_or_says_another(write, run: str, methods: list[str]) -> None:
    comparison = read(write(f"recipe: base.yaml\nruns:\n  {run}\nbudget: none\noutput_dir: out\n"))
    recipe = recipe_of(comparison, comparison.variants[0].name)
    assert [entry.name for entry in recipe.adapter.method] == methods


def test_items_of_lists_are_set_by_number(write) -> None:
    comparison = read(write("recipe: base.yaml\nruns: {a: {data.train.0.limit: 5}}\noutput_dir: out\n"))
    assert [(e.path, e.limit) for e in recipe_of(comparison, "a").data.train] == [("train.jsonl", 5)]


def test_mistakes_are_told_file_by_file(write) -> None:
    path = write(GOOD.replace("seeds:", "seedz:"), BASE + "data: other.jsonl\n")
    assert [at for at, _ in problems(path)] == ["11:1", f"{path.with_name('base.yaml')}:5:1"]


def test_several_mistakes_are_told_at_once(write) -> None:
    found = problems(write(GOOD.replace("seeds:", "seedz:").replace("rslora", "rslroa").replace("rank: 7", "rnak: 7")))
    assert [at for at, _ in found] == ["11:1", "4:17", "6:34"]


def test_what_is_wrong_with_the_common_recipe_is_said_once(write) -> None:
    path = write(base=BASE.replace("rank: 4", "rnak: 4"))
    assert [text for _, text in problems(path)] == ["adapter.rnak is not a key. Did you mean rank?"]
    path = write(base=BASE.replace("data: train.jsonl", "data: {train: train.jsonl, validation: none}"))
    ((place, text),) = problems(path)
    assert place == f"{path.with_name('base.yaml')}:2:40"
    assert "no validation rows to evaluate loss on" in text


def test_broken_files(write, tmp_path: Path) -> None:
    for text in ("", "- a\n", "runs: [\n", "a: 1\n---\nb: 2\n"):
        assert problems(write(text))
    with pytest.raises(UsageError, match="no such file"):
        read(tmp_path / "nowhere.yaml")
    assert run_command(["compare", str(tmp_path / "nowhere.yaml")]) == 2


def test_a_mistake_is_found_without_torch(write) -> None:
    path = write(GOOD.replace("seeds:", "seedz:"))
    program = "import sys, lrft.cli.main as c; print(c.run_command(['compare', sys.argv[1]]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=600)
    assert done.stdout == "2 False\n"
    assert f"{path}:11:1" in done.stderr


def test_every_key_is_in_the_help_and_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["compare", "--help"]) == 0
    shown = capsys.readouterr().out
    page = (Path(lrft.__file__).parents[1] / "docs" / "compare.md").read_text()
    for key in files.KEYS:
        assert f"\n  {key} " in shown
        assert f"| `{key}` |" in page


def test_the_example_that_ships_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(lrft.__file__).parents[1]
    monkeypatch.chdir(root)
    (path,) = (root / "recipes" / "compare").glob("*.yaml")
    assert len(read(path).variants) > 2


def test_the_schema_of_comparisons_has_every_key_and_says_which_are_required(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lrft.compare.json_schema import json_schema

    assert run_command(["schema", "--compare"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json_schema()
    assert set(printed["properties"]) == set(files.KEYS)
    assert printed["required"] == ["recipe", "runs", "output_dir"]
    assert run_command(["schema", "--compare", "adapter.rank"]) == 2
