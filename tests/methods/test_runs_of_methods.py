"""What every method must keep in a run: resumed is straight to the bit, and two processes train what one trains,
whether each holds the whole base or half of it, or half of the gradients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import runs
from cases import CASES, FIRSTS, some
from runs import Place

from lrft import recipe
from lrft.adapters import compose
from lrft.adapters.part import Part

# Differ from lora in their init or their factor alone, of which a run that goes on knows nothing.
INIT_ONLY = ("rslora", "prilora", "olora", "milora")
STRATEGIES = ("ddp", "fsdp", "zero2")
# By which a part acts in the steps of a run.
HOOKS = (
    *("make_optimizer", "lr_factors", "rate", "before_step", "loss", "output_loss", "compose_gradient"),
    *("after_backward", "after_step", "state"),
)
# 9 rows in steps of 4: the last step of an epoch has fewer rows than two processes with micro-batches of 2 have places.
KEYS = (
    "training.epochs=2",
    "training.optimizer={adamw: {eps: 1e-3}}",  # else Adam blows up the rounding of gradients that are nearly zero
    "checkpoint.every=3",
    "checkpoint.keep=9",
)
# Largest difference over the largest value. Sums of two processes round otherwise than those of one, and a large
# factor, or the inverse of a small one, makes more of that in a few steps.
TOLERANCE = 1e-4
WIDER = {
    **{"singlora+rslora": 1e-2, "corda": 1e-2, "gora+lora+": 1e-2, "fast-forward+dora": 2e-2},
    **{"lora-pro": 1e-3, "lora-one+rslora+preconditioned": 1e-3, "loft": 1e-2, "galore-plus": 1e-3},
    "loraprune+rslora+lora+": 1e-2,
}
# What depends on how a batch is cut into passes: masks and noise drawn in each pass, singular values of its logits,
# correlations over its rows, inputs scaled by the largest of each pass.
BY_PASS = (
    "lora-dropout",
    "ba-lora",
    "corda-kpm",
    "lora-ggpo",
    "lorb-correlation",
    "finegates",
    "pvera",
    "monteclora",
    "velora",
)
WORKER = """
import json, sys, warnings
warnings.simplefilter("error")
# DeepSpeed 0.19 imports what torch 2.13 has given up.
warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from lrft import recipe
from lrft.distributed import processes
from lrft.errors import RecipeError
from lrft.training.run import train
from lrft.training.state import Options

root, strategy, *keys = sys.argv[2:]
for number, words in json.loads(Path(f"{root}/cases.json").read_text()).items():
    more = (f"output_dir={root}/{strategy}-{number}", f"adapter.method={json.dumps(words)}")
    more += (f"distributed.strategy={strategy}",)
    try:
        train(recipe.load(Path(root) / "recipe.yaml", (*keys, *more)), Options(quiet=True))
    except RecipeError as error:
        Path(f"{root}/{strategy}-{number}.refused").write_text("\\n".join(error.lines()))
processes.leave()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("methods"), train_rows=9)


def straight(place: Place, case: str) -> Path:
    """The case's run, made once."""
    out = place.root / f"one-{list(CASES).index(case)}"
    if not out.exists():
        place.train(*KEYS, method_of(case), out=out.name)
    return out


def method_of(case: str) -> str:
    return f"adapter.method={json.dumps(CASES[case][0])}"


@pytest.mark.parametrize("case", some(CASES, {*FIRSTS} - {*INIT_ONLY}))
def test_a_resumed_run_ends_in_the_bits_of_a_straight_one(case: str, place: Place) -> None:
    """Trust 13."""
    whole = straight(place, case)
    cut = runs.cut(whole, 3, place.root / f"cut-{list(CASES).index(case)}")
    place.train(*KEYS, method_of(case), out=cut.name, resume="last")
    assert runs.differing(runs.tensors(whole), runs.tensors(cut)) == []
    assert runs.records(whole) == runs.records(cut)


def acting(case: str) -> frozenset[str]:
    """The hooks by which its parts act in a run."""
    entries = recipe.parse_adapter({"method": CASES[case][0]}).method
    parts = compose.compose((entry.name, entry.options) for entry in entries).parts
    return frozenset(hook for part in parts for hook in HOOKS if getattr(type(part), hook) is not getattr(Part, hook))


def pairs() -> Iterator[Any]:
    """Strategies and cases: under ddp a case for each set of hooks by which parts act in a run, under the others every
    second set in turn; all of them with --all. What does not act is a formula, which two processes compute as one
    does."""
    cases = [case for case in CASES if not any(word in case for word in BY_PASS)]
    chosen = list({acting(case): case for case in reversed(cases)}.values())
    of_each = {
        "ddp": {*chosen},
        **{strategy: {*chosen[n::2], "lora"} for n, strategy in enumerate(s for s in STRATEGIES if s != "ddp")},
    }
    for strategy in STRATEGIES:
        for case in cases:
            yield pytest.param(strategy, case, marks=[] if case in of_each[strategy] else [pytest.mark.all])


@pytest.fixture(scope="module")
def train_by_two(place: Place, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Trains under a strategy, once, all its cases that are asked for. One pair of processes that talk through gloo
    serves them all."""

    @cache
    def train(strategy: str) -> None:
        asked = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
        chosen = {item.callspec.params["case"] for item in asked if item.callspec.params.get("strategy") == strategy}
        numbered = {i: words for i, (case, (words, _)) in enumerate(CASES.items()) if case in chosen}
        (place.root / "cases.json").write_text(json.dumps(numbered))
        arguments = (str(place.root), strategy, *KEYS, "training.micro_batch_size=1")
        runs.side_by_side(WORKER, *arguments, seconds=1500)

    return train


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("strategy", "case"), list(pairs()))
def test_two_processes_train_what_one_trains(
    strategy: str, case: str, place: Place, train_by_two: Callable[[str], None]
) -> None:
    train_by_two(strategy)
    one, other = straight(place, case), place.root / f"{strategy}-{list(CASES).index(case)}"
    refused = other.with_suffix(".refused")
    composition = compose.compose((e.name, e.options) for e in place.recipe(method_of(case)).adapter.method)
    names = composition.acting_between_passes if strategy == "zero2" else []
    assert refused.exists() == bool(names)
    if names:  # DeepSpeed has its own copies of what these act on
        assert f"adapter.method: {', '.join(names)} acts on gradients" in refused.read_text()
        return
    assert runs.distance(runs.tensors(one), runs.tensors(other), "adapter") < WIDER.get(case, TOLERANCE)
    for mine, theirs in zip(runs.records(one), runs.records(other), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=WIDER.get(case, TOLERANCE))
