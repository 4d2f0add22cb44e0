"""Short runs of the fuzzers of scripts/stress/fuzz.py, and the hostile texts one by one."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from stress import ROOT, recipes, rows, workers
from stress.mutate import mutate
from stress.tally import Figure, Tally

from lrft import recipe
from lrft.errors import RecipeError, UsageError


@pytest.fixture
def corner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with what the corpus extends and names."""
    (tmp_path / "base.yaml").write_text(recipes.BASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY", recipes.CANARY)
    return tmp_path


@pytest.mark.parametrize("text", recipes.HOSTILE, ids=range(len(recipes.HOSTILE)))
def test_hostile_recipe_is_refused_at_once(text: str, corner: Path) -> None:
    path = corner / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    held, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises((RecipeError, UsageError)) as caught:
        recipe.load(path)
    assert time.process_time() - began < workers.SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < workers.MEGABYTES * 1024
    said = "\n".join(caught.value.lines())
    assert recipes.CANARY not in said
    assert len(said) < 20_000
    assert sorted(p.name for p in corner.iterdir()) == ["base.yaml", "recipe.yaml"]


def test_mutated_recipes(corner: Path) -> None:
    """The first of those that scripts/stress/fuzz.py makes: any exception but the two allowed ones fails."""
    ends = set()
    for n in range(400):
        text, overrides = recipes.generate(n, seed=0)
        (corner / "recipe.yaml").write_bytes(text)
        began = time.process_time()
        ends.add(recipes.judge(corner / "recipe.yaml", overrides, again=n % 5 == 0))
        assert time.process_time() - began < workers.SECONDS, n
    assert ends == {"accepted", "refused"}
    assert {p.name for p in corner.iterdir()} == {"base.yaml", "recipe.yaml", "resolved.yaml"}


@given(
    text=st.text(max_size=200).filter(lambda text: recipes.CANARY not in text),
    at=st.integers(0, 10_000),
    bit=st.integers(0, 7),
)
@settings(max_examples=150, deadline=None)
def test_any_text_in_any_place(text: str, at: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    whole = recipes.GOOD[2].encode()
    at %= len(whole)
    flipped = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    spliced = whole[:at] + text.encode("utf-8", "surrogatepass") + whole[at:]
    for content in (flipped, spliced, text.encode("utf-8", "surrogatepass")):
        path.write_bytes(content)
        recipes.judge(path, [], again=False)


def test_every_cut_of_a_good_recipe(corner: Path) -> None:
    whole = recipes.GOOD[2].encode()
    for end in range(len(whole)):
        (corner / "recipe.yaml").write_bytes(whole[:end])
        recipes.judge(corner / "recipe.yaml", [], again=False)


def test_mutated_data_files(corner: Path) -> None:
    """read == used + dropped, and a refusal is one of ours: the first of those that scripts/stress/fuzz.py makes."""
    tokenizers = (tiny_tokenizers.chatml(), tiny_tokenizers.spaced())
    ends = set()
    for n in range(120):
        suffix, content, settings = rows.generate(n, seed=0)
        path = corner / f"rows{suffix}"
        path.write_bytes(content)
        ends |= {rows.judge(path, policy, settings, tokenizers[n % 2]) for policy in ("skip", "error")}
    assert {"skip: used", "skip: used with drops", "skip: refused", "error: used", "error: refused"} <= ends


# --- the fuzzers themselves must be able to fail ---


def watched(tmp_path: Path, case: workers.Case) -> Figure:
    figure = Figure("broken")
    workers.run_all(Tally(minutes=1), figure, case, 3, tmp_path)
    return figure


def test_workers_see_what_a_case_does(tmp_path: Path) -> None:
    """In a process of its own: workers are forked, and this one has threads."""
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "import test_fuzz\n"
        "test_fuzz.watch_everything(Path(sys.argv[1]))\n"
    )
    paths = [str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT / "scripts"), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), *paths], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


def watch_everything(folder: Path) -> None:
    own, elsewhere = folder / "own", folder / "elsewhere"
    own.mkdir()

    def crash(n: int) -> str:
        raise ZeroDivisionError

    def die(n: int) -> str:
        os.abort()

    def write(n: int) -> str:
        elsewhere.write_text("x")
        return "done"

    def grow(n: int) -> str:
        held = b"x" * (400 << 20)
        return f"{len(held)}"

    for case, words, count in [(crash, "ZeroDivisionError", 3), (die, "the process died", 3), (write, "open", 3)]:
        figure = watched(own, case)
        assert figure.tried == 3
        assert len(figure.violations) == count, figure.violations
        assert all(words in violation for violation in figure.violations), figure.violations
    assert "MB more" in watched(own, grow).violations[0]
    assert watched(own, lambda n: "done").violations == []
    assert watched(own, lambda n: "done").notes == {"done": 3}


def test_mutations_are_repeatable_and_differ() -> None:
    good, everything = recipes.corpus()
    made = [mutate(good[2], everything, random.Random(n)) for n in range(200)]
    assert made == [mutate(good[2], everything, random.Random(n)) for n in range(200)]
    assert len(set(made)) > 150
    first, again, other = ([recipes.generate(n, seed=seed) for n in range(70, 80)] for seed in (1, 1, 2))
    assert first == again != other
