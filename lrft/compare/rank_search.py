"""The next map of ranks to try, by a small network that predicts the result of a map. RankAdaptor's search.

Zhou et al., 2024, arXiv 2406.15734: finished runs are pairs of (a rank for each block, its result); a network with two
hidden layers is fitted to them; of many maps, drawn at random and one or two changes away from the best so far, the one
with the best prediction is trained next. The paper has no code: sizes, draws and the fit are a reconstruction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from lrft import registry
from lrft.adapters.storage import SavedAdapter, read_adapter
from lrft.adapters.targets import depth_of
from lrft.compare import intervals, queries, result
from lrft.compare.config import Comparison, read
from lrft.compare.jobs import Job
from lrft.compare.run import run
from lrft.errors import UsageError
from lrft.recipe.edit import with_values
from lrft.recipe.nodes import Node, Source, plain
from lrft.recipe.problems import Problems
from lrft.recipe.yaml_parser import parse
from lrft.tracking.console import Reporter
from lrft.utils import files

HIDDEN, FITTING, RATE, DECAY = 32, 400, 1e-2, 1e-2
"""of the network: width of a layer, steps of AdamW, its learning rate and weight decay"""
DRAWN = 500
"""maps that are drawn at random, and as many near the best"""
NAME = "proposed-"
Map = tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """Finished maps, and what another one may be.

    results  by map, the lower the better
    blocks   name of each block, as in model.layers.0
    sizes    numbers that a rank costs in each block
    limit    numbers that a map may cost: those of the baseline
    """

    results: Mapping[Map, float]
    blocks: tuple[str, ...]
    sizes: tuple[int, ...]
    limit: int

    @property
    def ranks(self) -> list[int]:
        """Those that a map may have: all that some map has."""
        return sorted({rank for ranks in self.results for rank in ranks})

    def fits(self, ranks: Map) -> bool:
        return ranks not in self.results and sum(map(math.prod, zip(ranks, self.sizes, strict=True))) <= self.limit


def search(comparison: Comparison, reporter: Reporter, *, jobs: int, proposals: int) -> None:
    """Train the runs of the file, and then so many more, one after the other, each the best by what is known then."""
    for left in range(proposals, -1, -1):
        made = run(comparison, reporter, jobs=jobs, dry_run=False)
        if not left:
            return
        name = propose(comparison, made)
        if name is None:
            reporter.line("no other map of ranks costs as little as the baseline: nothing is left to propose")
            return
        reporter.line(f"{name} is predicted to be the best of other maps, and is added to {comparison.path}")
        comparison = read(comparison.path)


def propose(comparison: Comparison, jobs: Sequence[Job]) -> str | None:
    """Add the run that is predicted to be the best to the file of a comparison whose runs have ended. Returns its name;
    None where no other map fits. Raises UsageError for a comparison that is not one of maps of ranks."""
    measured = measured_maps(comparison, jobs)
    if len(set(measured.results)) < 2 or len(measured.ranks) < 2:
        raise UsageError(
            "--propose needs two finished runs that differ by the ranks of their blocks alone",
            "See docs/compare.md: ranks by layer.",
        )
    ranks = next_map(measured, seed=comparison.seeds[0])
    if ranks is None:
        return None
    name = next(f"{NAME}{n}" for n in range(1, 10**6) if not any(v.name == f"{NAME}{n}" for v in comparison.variants))
    write(comparison, name, {f"{block}.*": {"rank": rank} for block, rank in zip(measured.blocks, ranks, strict=True)})
    return name


def measured_maps(comparison: Comparison, jobs: Sequence[Job]) -> Measured:
    """The runs of the baseline's methods, at their best points. Raises UsageError."""
    if comparison.budget != "none":
        raise UsageError("--propose needs budget: none: each run keeps the ranks of its map")
    best = result.best_points(comparison, jobs)
    saved = {
        name: read_adapter(result.best_job(comparison, those).folder / "last") for name, (_, those) in best.items()
    }
    if comparison.baseline not in saved:
        raise UsageError(f"--propose needs a finished baseline, {comparison.baseline}")
    base = saved[comparison.baseline]
    own = blocks_of(base)
    results = {
        tuple(ranks.values()): mean_of(comparison, best[name][1])
        for name, adapter in saved.items()
        if adapter.info["methods"] == base.info["methods"] and list(ranks := blocks_of(adapter)) == list(own)
    }
    sizes = dict.fromkeys(own, 0)
    for site in base.sites:
        if (block := block_of(site.name)) is not None:
            sizes[block] += site.d + site.k
    limit = sum(own[block] * sizes[block] for block in own)
    return Measured(results, tuple(own), tuple(sizes.values()), limit)


def mean_of(comparison: Comparison, jobs: Sequence[Job]) -> float:
    """The mean over seeds of what runs are compared by, the lower the better."""
    found = [value for job in jobs if (value := queries.metric_of(job, comparison.metric)) is not None]
    return intervals.mean(found) * (1 if comparison.lower_is_better else -1)


def block_of(site: str) -> str | None:
    """model.layers.3 of model.layers.3.mlp.down_proj."""
    words = site.split(".")
    depth = depth_of(site)
    return None if depth is None else ".".join(words[: words.index(str(depth)) + 1])


def blocks_of(adapter: SavedAdapter) -> dict[str, int]:
    """The rank of each block; of a block with several ranks, none."""
    found: dict[str, set[int]] = {}
    for site in adapter.sites:
        if (block := block_of(site.name)) is not None:
            found.setdefault(block, set()).add(site.rank)
    return {block: ranks.pop() for block, ranks in found.items() if len(ranks) == 1}


def next_map(measured: Measured, *, seed: int) -> Map | None:
    """The map with the best prediction among those that are drawn and fit; the same for the same seed."""
    draw, ranks, count = Random(seed * 1_000_003 + len(measured.results)), measured.ranks, len(measured.blocks)
    best = min(measured.results, key=lambda one: measured.results[one])
    maps = [tuple(draw.choices(ranks, k=count)) for _ in range(DRAWN)]
    for _ in range(DRAWN):
        near = list(best)
        for place in draw.sample(range(count), min(count, draw.choice((1, 2)))):
            near[place] = draw.choice(ranks)
        maps.append(tuple(near))
    fitting = [one for one in dict.fromkeys(maps) if measured.fits(one)]
    if not fitting:
        return None
    predictions = predicted(measured.results, fitting, seed=seed)
    return fitting[int(predictions.argmin())]


def predicted(results: Mapping[Map, float], maps: Sequence[Map], *, seed: int) -> Tensor:
    """(maps,): the results of `maps` by a network that is fitted to `results`."""
    known, asked = torch.tensor(list(results), dtype=torch.float32), torch.tensor(maps, dtype=torch.float32)
    target = torch.tensor(list(results.values()), dtype=torch.float32)
    middle, spread = known.mean(), known.std().clamp_min(1e-6)
    goal, width = target.mean(), target.std().clamp_min(1e-12)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(known.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        for _ in range(FITTING):
            optimizer.zero_grad()
            loss = (network((known - middle) / spread)[:, 0] - (target - goal) / width).square().mean()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found: Tensor = network((asked - middle) / spread)[:, 0] * width + goal
    return found


def write(comparison: Comparison, name: str, overrides: Mapping[str, Any]) -> None:
    """The run into the file, which keeps everything else. It has the baseline's keys, and these ranks."""
    text = comparison.path.read_text(encoding="utf-8-sig")
    root = parse(text, Source(str(comparison.path)), Problems())
    named = root.child("runs")
    if named is None or not isinstance(named.value, dict):
        raise UsageError(f"{comparison.path}: runs is a list: --propose adds runs to a map, as in {{even: lora}}")
    keys = own_keys(comparison.baseline, named.value[comparison.baseline])
    text = with_values(text, {f"runs.{name}": {**keys, "adapter.overrides": dict(overrides)}})
    if root.child("baseline") is None:  # the first run of the file, which another one is now
        text = f"{text.rstrip()}\nbaseline: {comparison.baseline}\n"
    files.write_text(comparison.path, text)


def own_keys(name: str, run: Node) -> dict[str, Any]:
    """What a run of the file changes in the recipe, by dotted keys. Raises UsageError for ranks of its own blocks."""
    words = {*registry.methods(), *registry.PRESETS}
    value = name if run.value is None else json.loads(json.dumps(plain(run)))  # lists, not tuples
    if not isinstance(value, dict) or (len(value) == 1 and next(iter(value)) in words):
        return {"adapter.method": value}
    adapter = value.pop("adapter", {})
    inner = adapter if isinstance(adapter, dict) else {"method": adapter}
    found = {**value, **{f"adapter.{key}": given for key, given in inner.items()}}
    if "adapter.overrides" in found:
        raise UsageError(f"--propose: the baseline {name} has adapter.overrides", "Let a run without them be it.")
    own = {"adapter.method": name} if found and name in words and "adapter.method" not in found else {}
    return {**own, **found}
