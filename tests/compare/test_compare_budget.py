"""Ranks under a budget: against adapters that are really attached, for every method."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import runs
import tiny
from hypothesis import example, given
from hypothesis import strategies as st

import lrft
from lrft import registry
from lrft.adapters import compose
from lrft.adapters.attach import count_trained, select_sites
from lrft.compare.budget import Choice, Counter, choose, nearest_rank
from lrft.compare.config import read
from lrft.errors import RecipeError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.Place.make(tmp_path_factory.mktemp("budget")).root


def choices(root: Path, method_runs: str, more: str = "") -> dict[str, Choice]:
    path = root / "compare.yaml"
    path.write_text(f"recipe: recipe.yaml\nruns: {method_runs}\noutput_dir: out\n{more}")
    comparison = read(path)
    names = [variant.name for variant in comparison.variants for _ in variant.points]
    return dict(zip(names, choose(comparison), strict=True))


def trained(method: object, rank: int) -> int:
    handle = lrft.attach(tiny.make("llama"), {"method": method, "rank": rank})
    return sum(p.numel() for p in handle.trained().values())


@pytest.mark.parametrize("name", ["lora-fa", "mora", "hra", "lotr", "singlora", "edora", "randlora"])
def test_the_rank_is_the_nearest_of_all(root: Path, name: str) -> None:
    """Every rank that could be taken, attached to a real model and counted."""
    found = choices(root, f"[lora, {name}]")
    target = trained("lora", 4)
    assert (found["lora"].rank, found["lora"].trained, found["lora"].chosen) == (4, target, False)
    counts = {}
    for rank in range(1, tiny.WIDTH + 1):
        try:
            counts[rank] = trained(name, rank)
        except RecipeError:
            continue
    best = min(counts, key=lambda rank: (abs(counts[rank] - target), rank))
    assert (found[name].rank, found[name].trained) == (best, counts[best])
    assert found[name].chosen
    assert found[name].deviation == pytest.approx(counts[best] / target - 1)


@pytest.mark.parametrize("name", [*registry.methods(), *registry.PRESETS])
def test_counting_without_weights_is_counting(root: Path, name: str) -> None:
    """The same as `lrft methods --recipe`, which another test compares with real adapters; or the same refusal."""
    recipe = runs.Place(root).recipe(f"adapter.method={name}")
    counter = Counter()
    composition = compose.compose((e.name, e.options) for e in recipe.adapter.method)
    sites = select_sites(counter.skeleton(recipe), recipe.adapter, composition, recipe.where)
    try:
        wanted: int | str = count_trained(sites, composition, recipe.where)
    except RecipeError as error:
        wanted = str(error)
    try:
        found: int | str = counter.count(recipe, recipe.adapter.rank)
    except RecipeError as error:
        found = str(error)
    assert found == wanted


def test_a_size_of_its_own_is_named(root: Path) -> None:
    found = choices(root, "[lora, dcft, full]")
    assert (found["dcft"].fixed, found["dcft"].knobs) == (True, ("dcft.kernel 2",))
    assert found["dcft"].note == "does not depend on the rank; its size: dcft.kernel 2"
    assert (found["full"].fixed, found["full"].knobs, found["full"].chosen) == (True, (), False)
    assert found["full"].trained == trained("full", 4)
    assert not found["lora"].fixed


def test_the_other_budgets(root: Path) -> None:
    three = "{lora: , fa: {adapter.method: lora-fa}, own: {adapter.method: lora-fa, adapter.rank: 9}}"
    assert [c.rank for c in choices(root, three).values()] == [4, 8, 9]
    assert [c.rank for c in choices(root, three, "budget: rank\n").values()] == [4, 4, 9]
    assert [c.rank for c in choices(root, three, "budget: none\n").values()] == [4, 4, 9]
    own = "{lora: {adapter.method: lora, adapter.rank: 2}, fa: {adapter.method: lora-fa}}"
    assert [c.rank for c in choices(root, own, "budget: rank\n").values()] == [2, 2]
    assert [c.rank for c in choices(root, own, "budget: none\n").values()] == [2, 4]


def test_what_is_trained_beside_the_adapters_counts(root: Path) -> None:
    """Equal for all runs it leaves the ranks as they are; a run with more of it gets fewer numbers in its adapters."""
    norms = {"norms": True}
    attached = lrft.attach(tiny.make("llama"), {"method": "lora", "rank": 4, **norms})
    target, plain = sum(p.numel() for p in attached.trained().values()), trained("lora", 4)
    both = "{lora: {adapter.norms: true}, fa: {adapter.method: lora-fa, adapter.norms: true}}"
    found = choices(root, both)
    assert {choice.beside for choice in found.values()} == {target - plain}
    assert found["lora"].trained == target > plain
    assert found["fa"].rank == choices(root, "{lora: , fa: {adapter.method: lora-fa}}")["fa"].rank
    more = "{lora: {adapter.rank: 16}, rows: {adapter.method: lora, adapter.train_tokens: [hello, Ġworld]}}"
    found = choices(root, more)
    assert (found["lora"].beside, found["rows"].beside) == (0, 2 * tiny.WIDTH)
    assert found["rows"].rank == 16  # two rows are less than half a rank
    whole = "{lora: {adapter.rank: 16}, head: {adapter.method: lora, adapter.modules_to_save: [lm_head]}}"
    found = choices(root, whole)
    assert found["head"].rank < 16
    assert found["head"].trained == trained("lora", found["head"].rank) + found["head"].beside


def test_each_point_of_the_grid_has_its_rank(root: Path) -> None:
    path = root / "points.yaml"
    path.write_text(
        "recipe: recipe.yaml\nruns: [lora, lora-fa]\noutput_dir: out\n"
        "grid: {adapter.target_modules: [all-linear, [q_proj, k_proj]], training.learning_rate: [1e-3, 1e-2]}\n"
    )
    found = choose(read(path))
    assert [c.chosen for c in found] == [False] * 4 + [True] * 4
    all_linear, narrow = found[4], found[6]
    assert (found[4], found[6]) == (found[5], found[7]), "a learning rate changes nothing"
    assert narrow.rank > all_linear.rank


def test_what_does_not_fit_is_told_before_anything_starts(root: Path) -> None:
    with pytest.raises(RecipeError, match="set frequencies to fewer"):
        choices(root, "[lora, fourierft]")


@example(largest=6, slope=1, start=0, step=1, power=0.75, target=1, falls=True)  # ranks 1 and 2 count alike
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(0, 500),
    st.integers(1, 20),
    st.floats(0.5, 2),
    st.integers(1, 9000),
    st.booleans(),
)
def test_the_search_is_exact(
    largest: int, slope: int, start: int, step: int, power: float, target: int, falls: bool
) -> None:
    """Against trying every rank: methods that take multiples only, and counts that rise or fall with any power."""

    def count(rank: int) -> int | None:
        size = largest**power - rank**power if falls else rank**power
        return None if rank % step or rank > largest else start + slope * math.floor(size)

    every = {rank: known for rank in range(1, largest + 1) if (known := count(rank)) is not None}
    found = nearest_rank(count, target, largest)
    if not every:
        assert found is None
        return
    assert found is not None
    assert abs(found[1] - target) == min(abs(known - target) for known in every.values())
    assert found[1] == every[found[0]]
