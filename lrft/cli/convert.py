"""`lrft convert`: any adapter, or the difference of two models, as a LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.cli.answer import answering
from lrft.cli.arguments import AsJson, Base, TrustRemoteCode, loading, one_of, tell_choice
from lrft.errors import UsageError
from lrft.utils.text import Row, command, count

if TYPE_CHECKING:
    from lrft.export.lora import Lora
    from lrft.verification.merge import Difference


def convert(
    sources: Annotated[
        list[Path], typer.Argument(metavar="RUN|ADAPTER", help="A run or an adapter; BASE TUNED with --from-models.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new adapter folder.")],
    to: Annotated[str, typer.Option(help="lora.")] = "lora",
    from_models: Annotated[
        bool, typer.Option("--from-models", help="The difference of two model folders: a base and one tuned in full.")
    ] = False,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of every layer.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Share of the squared singular values that each layer keeps. Default: 0.99.")
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Largest mean logit difference, as a share of the mean change; above: exit code 4."),
    ] = 0.2,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Write any adapter, or what full fine-tuning changed, as a LoRA that PEFT, vLLM and llama.cpp load.

    Example: lrft convert runs/mora/best --rank 32 -o mora-as-lora
    """
    one_of("--to", to, ("lora",))
    wanted = 2 if from_models else 1
    if len(sources) != wanted:
        takes = "takes BASE TUNED, two model folders" if from_models else "takes one run or adapter"
        raise UsageError(f"lrft convert {'--from-models ' * from_models}{takes}, got {len(sources)}")
    if from_models and base:
        raise UsageError("--base has no effect with --from-models: the first folder is the base")
    with loading():
        from lrft.export.lora import Lora

    how = Lora(rank=rank, energy=energy, tolerance=tolerance)
    if from_models:
        facts, lost, difference = of_models(sources[0], sources[1], out, how, trust_remote_code)
    else:
        facts, lost, difference = of_adapter(sources[0], out, how, base)
    share = difference.mean / difference.mean_changed if difference.mean_changed else 0.0
    rows: list[Row] = [
        ("converted", [str(out), *facts]),
        ("checked", [f"mean logit difference {share:.2%} of the change", f"same token {difference.same_first:.2%}"]),
        ("next", [command("lrft", "eval", out, "--data", "test.jsonl")]),
    ]
    with answering(as_json) as reporter:
        reporter.table(rows)
        if lost:
            reporter.warn(lost)


def of_adapter(source: Path, out: Path, how: Lora, base: str | None) -> tuple[list[str], str, Difference]:
    """(facts, what was lost, how far the result is from the adapter)"""
    from lrft.adapters.peft_import import read_any
    from lrft.loading.base import base_of
    from lrft.runs.locate import adapter_folder
    from lrft.verification.adapter import verify_adapter

    adapter = adapter_folder(source)
    tell_choice(source, adapter)
    saved = read_any(adapter)
    folder = base_of(saved, base)
    facts = how.export(saved, folder, out)
    return facts, "", verify_adapter(out, adapter, base_folder=folder, tolerance=how.tolerance)


def of_models(base: Path, tuned: Path, out: Path, how: Lora, trusted: bool) -> tuple[list[str], str, Difference]:
    """The same for the difference of two models."""
    from lrft.export.extract import extract_lora
    from lrft.model.hub import find_model
    from lrft.verification.adapter import verify_extracted

    base, tuned = find_model(str(base), where="the base"), find_model(str(tuned), where="the tuned model")
    found = extract_lora(base, tuned, out, how, trust_remote_code=trusted)
    ranks = [len(cut.A) for cut in found.cuts.values()]
    facts = [
        f"{count(len(found.cuts), 'module')} as LoRA of rank {min(ranks)} to {max(ranks)}",
        f"largest relative error of an update {found.cuts[found.worst].error:.2%} in {found.worst}",
    ]
    return (
        facts,
        beside_words(found.beside),
        verify_extracted(out, base, tuned, tolerance=how.tolerance, trust_remote_code=trusted),
    )


def beside_words(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" * (len(names) > 3)
    return (
        f"{count(len(names), 'tensor')} that a LoRA does not hold keep the base's values: {', '.join(names[:3])}{more}"
    )
