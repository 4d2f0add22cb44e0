"""Data files, and what lrft.data makes of them; no row may get lost on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_tokenizers

from lrft import data
from lrft.recipe import DataEntry, DataSection

CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "one"}]}
PAIR = {"prompt": "a ", "completion": "one"}


def section(*train: Path | DataEntry, **options: Any) -> DataSection:
    entries = tuple(t if isinstance(t, DataEntry) else DataEntry(path=str(t)) for t in train)
    return DataSection(train=entries, **{"validation": "none", **options})


def prepare(tmp_path: Path, *train: Path | DataEntry, limit: int | None = None, tokenizer: Any = None, **options: Any):
    places = {f"data.{name}": f"recipe.yaml:{k}:3" for k, name in enumerate(options, 1)}
    prepared = data.prepare(
        section(*train, **options),
        tokenizer or tiny_tokenizers.chatml(),
        seed=7,
        limit=limit,
        where=lambda key: places.get(key, "default"),
        cache=tmp_path / "cache",
    )
    check_conservation(prepared.report)
    return prepared


def check_conservation(report: data.DataReport) -> None:
    for source in report.sources:
        assert source.read == source.used + sum(source.dropped.values())
    assert report.read == report.used + sum(report.dropped.values())
    assert data.DataReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert report.train_rows + report.validation_rows == sum(source.rows for source in report.sources)


def lines(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join(r + b"\n" if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows))
    return path


def texts(n: int, start: int = 0) -> list[dict[str, str]]:
    return [{"text": f"the answer is {i}"} for i in range(start, start + n)]


def answers(rows: data.Rows) -> list[str]:
    return [rows.answer(i) for i in range(len(rows))]
