"""`lrft generate`: answers to the prompts of a file, or to one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrft.cli.answering import chosen_adapter, opened, show
from lrft.cli.arguments import (
    Base,
    MaxNewTokens,
    Seed,
    TargetPath,
    Temperature,
    TopP,
    TrustRemoteCode,
    loading,
    one_of,
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
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="NAME=RUN",
            help="Another adapter of the base, for rows whose column adapter has its name. May be repeated.",
        ),
    ] = None,
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
    refuse_unclear(rows_path, out, prompt, system, adapters)
    if out is not None:
        refuse_taken(out)
    with loading():
        from lrft.evaluation.sampling import Sampling
        from lrft.serving.answer_file import AnswerFile
        from lrft.serving.load import weights_digest

    sampling = Sampling(temperature, top_p, seed)
    if prompt is not None:
        answer_one(opened(target, base, trust_remote_code, put), prompt, system, max_new_tokens, sampling)
        return
    models, folders = who_answers(target, adapters or [], base, trust_remote_code, put)
    prompts = read_rows(models, str(rows_path), data_format, columns, limit)
    weights = weights_digest(next(iter(models.values())).folder, folders)
    settings = {"weights": weights, "prompts": digest(prompts), "most": max_new_tokens, **asdict(sampling)}
    answer_all(models, prompts, AnswerFile(Path(str(out)), settings), max_new_tokens, sampling, batch_size)


def who_answers(
    target: str, adapters: Sequence[str], base: str | None, trusted: bool, put: str | None
) -> tuple[dict[str, Trained], dict[str, Path]]:
    """(the models by name, over one base in memory; the folders of their adapters). The first, the target, answers rows
    that name none; its name is that of its folder, or base."""
    chosen = chosen_adapter(target)
    if not adapters:
        return {"": opened(target, base, trusted, put)}, {} if chosen is None else {"": chosen}
    from lrft.serving.shelf import BASE, load_shelf, name_of

    own = BASE if chosen is None else name_of(target)
    named = {} if chosen is None else {own: target}
    for word in adapters:
        name, equals, folder = word.partition("=")
        if not equals or not name or not folder:
            raise UsageError(f"--adapter must be NAME=RUN (got {word})")
        if name in (*named, own, BASE):
            raise UsageError(f"--adapter {word}: {name} is another's name already")
        named[name] = folder
    shelf = load_shelf(named, target if chosen is None else base, trusted, put)
    folders = {name: adapter for name, one in named.items() if (adapter := chosen_adapter(one)) is not None}
    return {own: shelf[own], **shelf}, folders


def digest(prompts: Sequence[Prompt]) -> str:
    """sha256 of what is asked, and of whom."""
    asked = hashlib.sha256()
    for prompt in prompts:
        asked.update(prompt.by.encode() + prompt.ids.tobytes() + b"\n")
    return asked.hexdigest()


def refuse_unclear(
    rows_path: str | None, out: Path | None, prompt: str | None, system: str | None, adapters: Sequence[str] | None
) -> None:
    """Raises UsageError unless there is one prompt, or a file of them and a place for the answers."""
    if (prompt is None) == (rows_path is None):
        raise UsageError("pass either --data FILE or --prompt TEXT")
    if rows_path is not None and out is None:
        raise UsageError("--data requires -o FILE for the answers")
    if rows_path is None and out is not None:
        raise UsageError("-o is only for --data: the answer to --prompt is printed")
    if adapters and prompt is not None:
        raise UsageError("--adapter is only for --data: --prompt is answered by one model")
    if system is not None and prompt is None:
        raise UsageError("--system is only for --prompt: rows of --data have system turns of their own")


def answer_one(trained: Trained, text: str, system: str | None, most: int, sampling: Sampling) -> None:
    """Print the answer as it is written."""
    from lrft.data.prompts import one_prompt
    from lrft.serving.answerer import Request

    if system is not None and trained.asking.plain:
        raise UsageError("--system requires a chat template", "Use --as chat, or write it into the prompt.")
    ids = one_prompt(trained.asking, text, system)
    trained.answerer.answer([Request(ids, most, sampling, told=show)])
    print()


def read_rows(
    models: Mapping[str, Trained], path: str, data_format: str, columns: str | None, limit: int | None
) -> list[Prompt]:
    """The prompts of a file. Raises DataError for rows that are none, or that leave no room for an answer."""
    from lrft import recipe as recipes
    from lrft.data.prompts import read_prompts
    from lrft.errors import DataError

    keys = {"format": data_format, **({"columns": columns} if columns is not None else {})}
    entry = recipes.parse_entry(path, {"format": "auto", "columns": {}, "special_tokens": "auto"}, keys)
    asking = {name: trained.asking for name, trained in models.items()}
    prompts = read_prompts(path, asking, form=entry.format, columns=entry.columns, limit=limit)
    most = next(iter(models.values())).answerer.positions
    if most is not None and (long := [p for p in prompts if len(p.ids) >= most]):
        lines = [f"{p.place}  {len(p.ids):,} tokens" for p in long[:10]]
        raise DataError("\n".join([f"{count(len(long), 'prompt')} of the model's {most:,} positions or more", *lines]))
    return prompts


def answer_all(
    models: Mapping[str, Trained],
    prompts: Sequence[Prompt],
    file: AnswerFile,
    most: int,
    sampling: Sampling,
    batch_size: int,
) -> None:
    """Answer what has no answer yet, the shortest prompts first, and write the whole file."""
    from lrft.cli.eval import telling
    from lrft.tracking.console import Reporter

    with Reporter(None) as reporter, closing(file):
        if file.done:
            reporter.line(f"{len(file.done):,} of {count(len(prompts), 'row')} were answered before")
        progress = telling(reporter, len(prompts))
        for name, numbers in by_length(prompts, file.done.keys(), batch_size):
            requests = [request_of(prompts[n - 1], n, most, sampling) for n in numbers]
            by = {"adapter": name} if len(models) > 1 else {}
            for n, answer in zip(numbers, models[name].answerer.answer(requests), strict=True):
                file.add(n, {**by, "answer": answer.text, "finish": answer.finish, "tokens": answer.tokens})
            progress(len(file.done))
        tokens = sum(answer["tokens"] for answer in file.done.values())
        file.finish([prompt.row for prompt in prompts])
        reporter.table([("answered", [str(file.out), count(len(prompts), "row"), count(tokens, "token")])])
        for note in without_end(file.done.values(), most, next(iter(models.values())).answerer.positions):
            reporter.warn(note)


def without_end(answers: Iterable[Mapping[str, Any]], most: int, positions: int | None) -> Iterator[str]:
    """What kept answers from their end."""
    lengths = [answer["tokens"] for answer in answers if answer["finish"] == "length"]
    if cut := sum(length >= most for length in lengths):
        yield f"{count(cut, 'answer')} had no end after {most:,} tokens; see --max-new-tokens"
    if cut := sum(length < most for length in lengths):
        yield f"{count(cut, 'answer')} had no end at the model's last position of {positions or 0:,}"


def request_of(prompt: Prompt, row: int, most: int, sampling: Sampling) -> Request:
    """What is asked of a row, drawn from a generator of its own: the batch and an interruption change nothing."""
    from lrft.serving.answerer import Request
    from lrft.utils.seeds import seed_of

    return Request(prompt.ids, most, replace(sampling, seed=seed_of(sampling.seed, "row", row)))


def by_length(prompts: Sequence[Prompt], done: Any, size: int) -> Iterator[tuple[str, list[int]]]:
    """(who answers, numbers of rows) of each batch of the rows that have no answer, counted from 1; prompts of like
    length together."""
    left = [n for n in range(1, len(prompts) + 1) if n not in done]
    left.sort(key=lambda n: len(prompts[n - 1].ids))
    for name in dict.fromkeys(prompt.by for prompt in prompts):
        own = [n for n in left if prompts[n - 1].by == name]
        yield from ((name, own[at : at + size]) for at in range(0, len(own), size))
