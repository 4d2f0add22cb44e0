"""`lrft generate`: answers to the prompts of a file, or to one."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrft.cli.arguments import (
    Base,
    MaxNewTokens,
    Seed,
    TargetPath,
    Temperature,
    TopP,
    TrustRemoteCode,
    adapter_in,
    loading,
    one_of,
    tell_choice,
)
from lrft.errors import UsageError
from lrft.serving.answer_file import refuse_taken
from lrft.utils.text import count

if TYPE_CHECKING:
    from lrft.data.prompts import Prompt
    from lrft.evaluation.sampling import Sampling
    from lrft.serving.answer_file import AnswerFile
    from lrft.serving.answerer import Request
    from lrft.serving.load import Trained

PUT = ("chat", "text")


def generate(
    target: TargetPath,
    rows_path: Annotated[
        str | None, typer.Option("--data", help="Rows to answer: prompts or conversations, with or without answers.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The new .jsonl file of rows and answers.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="One prompt; its answer is printed.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system turn before --prompt.")] = None,
    put: Annotated[
        str | None,
        typer.Option("--as", metavar="chat|text", help="How a plain text is put. Default: as the run's rows were."),
    ] = None,
    data_format: Annotated[str, typer.Option("--format", help="Format of the rows, as data.train[].format.")] = "auto",
    columns: Annotated[
        str | None, typer.Option(metavar="{THEIRS: OURS}", help="Column mapping, as data.train[].columns.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 8,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer the prompts of a file, or one prompt. A command that was interrupted continues when it is repeated.

    Example: lrft generate runs/first --data prompts.jsonl -o answers.jsonl
    """
    one_of("--as", put, PUT)
    refuse_unclear(rows_path, out, prompt, system)
    if out is not None:
        refuse_taken(out)
    with loading():
        from lrft.evaluation.sampling import Sampling
        from lrft.serving.load import load

    adapter = adapter_in(target)
    if adapter is not None:
        tell_choice(Path(target), adapter)
    trained = load(target, base, trust_remote_code, put)
    sampling = Sampling(temperature, top_p, seed)
    if prompt is not None:
        answer_one(trained, prompt, system, max_new_tokens, sampling)
        return
    prompts = read_rows(trained, str(rows_path), data_format, columns, limit)
    file = answer_file(Path(str(out)), target, prompts, trained, {"most": max_new_tokens, **asdict(sampling)})
    answer_all(trained, prompts, file, max_new_tokens, sampling, batch_size)


def refuse_unclear(rows_path: str | None, out: Path | None, prompt: str | None, system: str | None) -> None:
    """Raises UsageError unless there is one prompt, or a file of them and a place for the answers."""
    if (prompt is None) == (rows_path is None):
        raise UsageError("pass either --data FILE or --prompt TEXT")
    if rows_path is not None and out is None:
        raise UsageError("--data requires -o FILE for the answers")
    if rows_path is None and out is not None:
        raise UsageError("-o is only for --data: the answer to --prompt is printed")
    if system is not None and prompt is None:
        raise UsageError("--system is only for --prompt: rows of --data have system turns of their own")


def answer_one(trained: Trained, text: str, system: str | None, most: int, sampling: Sampling) -> None:
    """Print the answer as it is written."""
    from lrft.data.prompts import one_prompt
    from lrft.serving.answerer import Request

    if system is not None and trained.asking.plain:
        raise UsageError("--system requires a chat template", "Use --as chat, or write it into the prompt.")
    ids = one_prompt(trained.asking, text, system)
    trained.answerer.answer([Request(ids, most, sampling, told=shown)])
    print()


def shown(text: str) -> bool:
    """Write a stretch of an answer as it is; a model's control characters go to a terminal written out."""
    from lrft.utils.text import visible

    lines = text.split("\n")
    sys.stdout.write("\n".join(map(visible, lines)) if sys.stdout.isatty() else text)
    sys.stdout.flush()
    return True


def read_rows(trained: Trained, path: str, data_format: str, columns: str | None, limit: int | None) -> list[Prompt]:
    """The prompts of a file. Raises DataError for rows that are none, or that leave no room for an answer."""
    from lrft import recipe as recipes
    from lrft.data.prompts import read_prompts
    from lrft.errors import DataError

    keys = {"format": data_format, **({"columns": columns} if columns is not None else {})}
    entry = recipes.parse_entry(path, {"format": "auto", "columns": {}, "special_tokens": "auto"}, keys)
    prompts = read_prompts(path, trained.asking, form=entry.format, columns=entry.columns, limit=limit)
    most = trained.answerer.positions
    if most is not None and (long := [p for p in prompts if len(p.ids) >= most]):
        lines = [f"{p.place}  {len(p.ids):,} tokens" for p in long[:10]]
        raise DataError("\n".join([f"{count(len(long), 'prompt')} of the model's {most:,} positions or more", *lines]))
    return prompts


def answer_file(
    out: Path, target: str, prompts: Sequence[Prompt], trained: Trained, settings: dict[str, Any]
) -> AnswerFile:
    """The file for the answers, with those of an interrupted command."""
    from lrft.serving.answer_file import AnswerFile
    from lrft.serving.load import weights_digest

    asked = hashlib.sha256()
    for prompt in prompts:
        asked.update(prompt.ids.tobytes() + b"\n")
    weights = weights_digest(target, trained)
    return AnswerFile(out, {"weights": weights, "prompts": asked.hexdigest(), **settings})


def answer_all(
    trained: Trained, prompts: Sequence[Prompt], file: AnswerFile, most: int, sampling: Sampling, batch_size: int
) -> None:
    """Answer what has no answer yet, the shortest prompts first, and write the whole file."""
    from lrft.cli.eval import telling
    from lrft.tracking.console import Reporter

    with Reporter(None) as reporter, closing(file):
        if file.done:
            reporter.line(f"{len(file.done):,} of {count(len(prompts), 'row')} were answered before")
        progress = telling(reporter, len(prompts))
        for numbers in by_length(prompts, file.done.keys(), batch_size):
            requests = [request_of(prompts[n - 1], n, most, sampling) for n in numbers]
            for n, answer in zip(numbers, trained.answerer.answer(requests), strict=True):
                file.add(n, {"answer": answer.text, "finish": answer.finish, "tokens": answer.tokens})
            progress(len(file.done))
        cut = sum(answer["finish"] == "length" for answer in file.done.values())
        tokens = sum(answer["tokens"] for answer in file.done.values())
        file.finish([prompt.row for prompt in prompts])
        reporter.table([("answered", [str(file.out), count(len(prompts), "row"), count(tokens, "token")])])
        if cut:
            reporter.warn(f"{count(cut, 'answer')} had no end after {most:,} tokens; see --max-new-tokens")


def request_of(prompt: Prompt, row: int, most: int, sampling: Sampling) -> Request:
    """What is asked of a row, drawn from a generator of its own: the batch and an interruption change nothing."""
    from lrft.serving.answerer import Request
    from lrft.utils.seeds import seed_of

    return Request(prompt.ids, most, replace(sampling, seed=seed_of(sampling.seed, "row", row)))


def by_length(prompts: Sequence[Prompt], done: Any, size: int) -> Iterator[list[int]]:
    """Batches of the numbers of rows that have no answer, counted from 1, prompts of like length together."""
    left = [n for n in range(1, len(prompts) + 1) if n not in done]
    left.sort(key=lambda n: len(prompts[n - 1].ids))
    yield from (left[at : at + size] for at in range(0, len(left), size))
