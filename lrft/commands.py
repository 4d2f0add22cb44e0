"""What the commands do that need the libraries: merge, verify, inspect, check, plan, preview. Training and evaluation
have files of their own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lrft import (
    base,
    catalog,
    files,
    inspecting,
    inspectreport,
    merging,
    methodlist,
    setup,
)
from lrft import plan as planning
from lrft.checkpoint import adapter_of
from lrft.core import compose, linear, targets
from lrft.errors import RecipeError, UsageError
from lrft.peftfolder import is_peft_folder
from lrft.recipe import Recipe
from lrft.report import PROGRESS_SECONDS, Reporter
from lrft.selfcheck import Finding, verify_run
from lrft.text import Row
from lrft.verify import Quantized, run_of, trusts_remote_code, verify_merge

LARGEST_LOSS = 0.1  # share of the update lost to rounding at a merge that is worth a warning


def merge(
    source: Path,
    out: Path | None,
    *,
    dtype: str | None,
    base_model: str | None,
    verify: bool,
    tolerance: float | None,
    accept_other_base: bool,
    as_json: bool,
    into: str = "original",
) -> None:
    """`lrft merge`."""
    adapter = adapter_of(source)
    if out is None:
        run = run_of(adapter)
        if run is None:
            raise UsageError("say where the merged model goes: -o FOLDER")
        out = run / "merged"
    result = merging.merge(
        adapter,
        out,
        base_model=base_model,
        dtype=dtype,
        accept_other_base=accept_other_base,
        into=into,
        trust_remote_code=trusts_remote_code(adapter),
    )
    difference = None
    if verify:
        difference = verify_merge(out, adapter, base_folder=result.base, tolerance=tolerance, into=into)
    if as_json:
        facts = {
            "out": str(out),
            **result.to_dict(),
            "verified": difference.to_dict() if difference else None,
        }
        print(json.dumps(facts, indent=1))
        return
    rows: list[Row] = [
        ("merged", [str(out), f"{result.sites} modules"]),
        (
            "rounding",
            [
                f"{result.lost_share:.2%} of the update lost",
                f"worst {result.worst_share:.2%} in {result.worst_site}",
            ],
        ),
    ]
    if difference:
        rows.append(
            (
                "checked",
                [
                    f"merged against adapter on {difference.rows} rows: largest logit difference "
                    f"{difference.largest:.2g} (largest logit {difference.largest_logit:.3g})",
                    f"same first token {difference.same_first:.2%}",
                ],
            )
        )
    if difference and difference.quantized:
        rows.append(("quantised", quantized_lines(difference.quantized)))
    rows.append(("next", [f"lrft eval {out} --data test.jsonl"]))
    with Reporter(None) as reporter:
        reporter.table(rows)
        if result.lost_share > LARGEST_LOSS:
            reporter.warn(f"rounding took {result.lost_share:.0%} of the update; --dtype float32 keeps it")


def quantized_lines(found: Quantized) -> list[str]:
    """How far apart the two bases are that an adapter can be merged into."""
    return [
        f"the adapter was trained on a base in {found.kind}, and is merged into the original one",
        f"mean logit difference: {found.mean:.2g} to the adapter where it was trained, {found.base:.2g} between the "
        f"two bases, {found.update:.2g} between what the adapter changes in each",
        "--into dequantized merges into the weights that were trained against",
    ]


def verify(source: Path, *, as_json: bool) -> None:
    """`lrft verify`."""
    adapter = adapter_of(source)
    run = run_of(adapter)
    if run is None or not (run / "resolved.yaml").is_file():
        raise UsageError(f"{source} is not a run: its recipe and data are needed")
    with Reporter(None, quiet=as_json) as reporter:

        def tell(finding: Finding) -> None:
            reporter.table([("holds" if finding.holds else "FAILS", [f"{finding.name}: {finding.text}"])])

        findings = verify_run(run, adapter, tell=tell)
    if as_json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=1))


def inspect(
    source: Path,
    out: Path | None,
    *,
    base_model: str | None,
    top: int,
    epsilon: float,
    accept_other_base: bool,
    as_json: bool,
) -> None:
    """`lrft inspect`."""
    adapter = source if is_peft_folder(source) else adapter_of(source)
    folder = out or run_of(adapter)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "Name a folder with -o.")
    with watched("inspecting") as progress:
        found = inspecting.inspect(
            adapter,
            base_model=base_model,
            top=top,
            epsilon=epsilon,
            accept_other_base=accept_other_base,
            progress=progress,
        )
    if folder is not None:
        with files.room_for(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "inspect.json", found.to_dict())
        files.write_bytes(folder / "inspect.png", inspectreport.picture(found))
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    written = f"inspect.json and inspect.png in {folder}" if folder else "no file was written: -o FOLDER names a place"
    with Reporter(None) as reporter:
        for line in [*inspectreport.lines(found), "", written]:
            reporter.line(line)


@contextmanager
def watched(word: str) -> Iterator[Callable[[int, int], None]]:
    """Tells on the standard error how far something is: a live line on a terminal, else a line now and then."""
    told = time.monotonic()
    console = Console(stderr=True)
    with Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else nullcontext() as live:

        def progress(done: int, total: int) -> None:
            nonlocal told
            text = f"{word}: {done:,} of {total:,}"
            if live is not None:
                live.update(Text(text), refresh=True)
            elif done < total and time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                print(text, file=sys.stderr)

        yield progress


def check(recipe: Recipe, path: Path) -> None:
    """`lrft check`: tokenizer, data, module names and shapes; the model is built without weights."""
    source = base.resolve(recipe.model.name, recipe.model.revision, where=recipe.where("model.name"))
    skeleton = base.skeleton(source, trust_remote_code=recipe.model.trust_remote_code)
    composition = compose.compose((entry.name, entry.options) for entry in recipe.adapter.method)
    sites = compose.plan(skeleton, recipe.adapter, composition, recipe.where)
    trained = compose.count_trained(sites, composition, recipe.where)
    prepared = setup.prepare_data(recipe, source, setup.load_tokenizer(recipe, source))
    everything = sum(p.numel() for p in skeleton.parameters())
    linears = sum(1 for _ in linear.named_linears(skeleton))
    with Reporter(None) as reporter:
        reporter.table(
            [
                ("model", [recipe.masked(recipe.model.name), f"{everything / 1e6:,.1f} M parameters"]),
                (
                    "adapter",
                    [
                        f"{len(sites)} of {linears} linear layers: {' '.join(targets.words_of(s.name for s in sites))}",
                        f"{trained / 1e6:,.2f} M trained ({trained / (everything + trained):.2%})",
                    ],
                ),
                ("data", prepared.report.lines()),
            ]
        )
        for text in compose.advice(composition, sites, skeleton):
            reporter.warn(text)
        reporter.line(f"{path}: nothing wrong was found")


def plan(recipe: Recipe, *, devices: int, nodes: int, as_json: bool) -> None:
    """`lrft plan` for `devices` on each of `nodes`."""
    source = base.resolve(recipe.model.name, recipe.model.revision, where=recipe.where("model.name"))
    prepared = setup.prepare_data(recipe, source, setup.load_tokenizer(recipe, source))
    made = planning.make_plan(recipe, source, prepared, devices * nodes, nodes=nodes)
    if as_json:
        print(json.dumps(planning.to_dict(made), indent=1))
        return
    with Reporter(None) as reporter:
        reporter.table(planning.rows(made, recipe))


def count_methods(recipe: Recipe, *, kind: str | None, as_json: bool) -> None:
    """`lrft methods --recipe`: what each method would train in the place of the recipe's own."""
    source = base.resolve(recipe.model.name, recipe.model.revision, where=recipe.where("model.name"))
    skeleton = base.skeleton(source, trust_remote_code=recipe.model.trust_remote_code)
    everything = sum(p.numel() for p in skeleton.parameters())
    found: dict[str, int | str] = {}
    for card in methodlist.of_kind(catalog.methods(), kind):
        composition = compose.compose([(card.name, {})])
        adapter = recipe.adapter.model_copy(update={} if composition.scale_owner else {"alpha": "auto", "scale": None})
        try:
            sites = compose.plan(skeleton, adapter, composition, recipe.where)
            found[card.name] = compose.count_trained(sites, composition, recipe.where)
        except RecipeError as error:
            found[card.name] = error.problems[0].text.removeprefix("adapter: ")
    if as_json:
        print(json.dumps(found, indent=1))
        return
    width = max(map(len, found))
    for name, count in found.items():
        if isinstance(count, int):
            print(f"{name:<{width}}  {count / 1e6:>10,.3f} M  {count / (everything + count):>7.2%}")
        else:
            print(f"{name:<{width}}  not here: {count}")


def preview(recipe: Recipe, *, n: int, split: str) -> None:
    """`lrft preview`."""
    from lrft.data.preview import render

    source = base.resolve(recipe.model.name, recipe.model.revision, where=recipe.where("model.name"))
    tokenizer = setup.load_tokenizer(recipe, source)
    prepared = setup.prepare_data(recipe, source, tokenizer)
    rows = prepared.train if split == "train" else prepared.validation
    if rows is None:
        raise UsageError("this recipe holds no validation rows out (data.validation: none)")
    console = Console()
    colour = console.is_terminal and not console.no_color
    console.print(render(rows, prepared.report, tokenizer, n=n, colour=colour), soft_wrap=True)
