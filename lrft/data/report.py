"""Accounting of every row: read == used + dropped, per source and in total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lrft.utils.text import count

EXAMPLES = 10
BINS = 16
LABELS = 20  # that are named
FOREIGN = 5  # marks that are named
NOT_DRAWN = "not drawn (limit)"
NO_TOKEN = "no trained token"
TOO_LONG = "longer than max_length"
# Left out because the recipe says so, not because the row is bad.
CHOSEN = (NOT_DRAWN, NO_TOKEN, TOO_LONG)


@dataclass
class SourceReport:
    """One file or hub data set.

    path, role ("train" or "validation"), format, and how that was `decided` ("found", "given", "file type").
    read, used: records. rows: tokenised rows made of them (more than `used` only with too_long: split).
    dropped: {reason: records}. truncated: rows cut at max_length. ignored: {column that is not used: records that
    have something in it}. special_text: rows with the text of a special token.
    examples: the first offenders of each reason, {"source", "reason", "detail", "head"}.
    """

    path: str
    role: str = "train"
    format: str = ""
    decided: str = "found"
    read: int = 0
    used: int = 0
    rows: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    special_text: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, str]] = field(default_factory=list)

    def drop(self, reason: str, source: str, detail: str, head: str = "") -> None:
        """Count one record that is not used."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if self.dropped[reason] <= EXAMPLES:
            self.examples.append({"source": source, "reason": reason, "detail": detail, "head": head})


@dataclass
class DataReport:
    """The whole of one preparation.

    tokens, trained_tokens: of the train rows; validation_*: of the validation rows.
    lengths: {"5", "50", "95", "max"} tokens per row (per sequence where rows have several) over both, after too_long
    was applied.
    by_length: the histogram of the same lengths, [{"up_to": tokens, "rows": rows}].
    max_length_from: "data.max_length", or "the model" when the model's positions are fewer.
    end_tokens: the tokens that close answers. end_token_trained: every row that was not cut ends in one.
    special_text: rows with the text of a special token, tokenised as plain text. special_read: rows in which such text
    stands for the token. foreign_text: rows that hold marks of another model's template, foreign_tokens, which this
    tokenizer has no tokens for. altered: rows of which the chat template left out or rewrote some content. repeated:
    validation rows that also are train rows. opening: what the template writes before an answer and is trained with
    it, because the template has no generation prompt. held_out: how the default of data.validation was meant here.
    weights: {"rows" with a weight other than 1, "least" and "most" of these}; empty where there is none.
    labels: {label: rows that have it}, of train rows that carry one. parts: names of the sequences of each row, where
    there are several. label_notes: on labels that are rare or cannot be validated. several: labels are lists. whole:
    rows are answered as a whole, so no token of theirs is trained. prompts: {query or document: text before it}, where
    there are any. key: of the cache. hit: found there (None: the cache
    is off).
    """

    sources: list[SourceReport] = field(default_factory=list)
    train_rows: int = 0
    validation_rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    validation_tokens: int = 0
    validation_trained_tokens: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    by_length: list[dict[str, int]] = field(default_factory=list)
    max_length: int = 0
    max_length_from: str = "data.max_length"
    end_tokens: list[str] = field(default_factory=list)
    end_token_trained: bool = False
    special_text: int = 0
    special_read: int = 0
    foreign_text: int = 0
    foreign_tokens: list[str] = field(default_factory=list)
    altered: int = 0
    repeated: int = 0
    opening: str = ""
    held_out: str = ""
    weights: dict[str, float] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    label_notes: list[str] = field(default_factory=list)
    several: bool = False
    whole: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    key: str = ""
    hit: bool | None = None

    @property
    def read(self) -> int:
        """Records read, over all sources."""
        return sum(source.read for source in self.sources)

    @property
    def used(self) -> int:
        """Records used, over all sources."""
        return sum(source.used for source in self.sources)

    @property
    def truncated(self) -> int:
        """Rows cut at max_length, over all sources."""
        return sum(source.truncated for source in self.sources)

    @property
    def dropped(self) -> dict[str, int]:
        """{reason: records}, over all sources."""
        total: dict[str, int] = {}
        for source in self.sources:
            for reason, records in source.dropped.items():
                total[reason] = total.get(reason, 0) + records
        return total

    def add_weight(self, weight: float) -> None:
        """Count a row with this weight."""
        if weight == 1:
            return
        least, most = self.weights.get("least", weight), self.weights.get("most", weight)
        rows = self.weights.get("rows", 0) + 1
        self.weights = {"rows": rows, "least": min(least, weight), "most": max(most, weight)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the totals are included for readers and ignored by `from_dict`."""
        totals = {"read": self.read, "used": self.used, "truncated": self.truncated, "dropped": self.dropped}
        return {**asdict(self), **totals}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DataReport:
        """Raises TypeError or KeyError when `value` did not come from `to_dict`."""
        known = {name: v for name, v in value.items() if name in cls.__dataclass_fields__}
        return cls(**{**known, "sources": [SourceReport(**source) for source in value["sources"]]})

    def lines(self) -> list[str]:
        """The report in words, one fact per line."""
        out = [self._source_line(source) for source in self.sources]
        share = self.trained_tokens / self.tokens if self.tokens else 0
        trained = "" if self.whole else f", {self.trained_tokens:,} of them trained ({share:.0%})"
        out.append(
            f"{count(self.train_rows, 'train row')}, {count(self.tokens, 'token')}{trained}; "
            f"{count(self.validation_rows, 'validation row')}"
        )
        each = f"sequence ({' and '.join(filter(None, (', '.join(self.parts[:-1]), *self.parts[-1:])))})"
        each = each if self.parts else "row"
        out.append(f"tokens per {each}: {quantile_words(self.lengths)} (limit {self.max_length:,})")
        if self.weights:
            rows, least, most = (self.weights[key] for key in ("rows", "least", "most"))
            out.append(
                f"{count(int(rows), 'row')} with a weight, {least:g} to {most:g}: so much a token of theirs counts"
            )
        if self.labels:
            only = ": there is no other label" * (len(self.labels) == 1)
            shown = list(self.labels.items())[:LABELS]
            more = f" and {len(self.labels) - LABELS} more" * (len(self.labels) > LABELS)
            out.append(f"labels: {', '.join(f'{label} in {n:,}' for label, n in shown)}{more}{only}")
        out += self.label_notes
        out += [f"before each {side}: {text!r}" for side, text in self.prompts.items() if text]
        if not self.whole:
            trained = "is trained" if self.end_token_trained else "is NOT trained in every row"
            out.append(f"end token {' '.join(self.end_tokens) or '(none)'} {trained}")
        if self.special_text:
            out.append(f"{count(self.special_text, 'row')} containing special-token text, encoded as plain text")
        if self.special_read:
            out.append(f"{count(self.special_read, 'row')} containing special-token text, encoded as the token")
        if self.foreign_text:
            named = ", ".join(self.foreign_tokens[:FOREIGN]) + ", ..." * (len(self.foreign_tokens) > FOREIGN)
            out.append(
                f"{count(self.foreign_text, 'row')} containing marks of another model's chat template ({named}), "
                "encoded as plain text: this tokenizer has no such tokens"
            )
        if self.opening:
            out.append(f"the chat template has no generation prompt: answers are trained with {self.opening!r} before")
        if self.held_out:
            out.append(self.held_out)
        if self.altered:
            out.append(f"{count(self.altered, 'row')} with content that the chat template drops or rewrites")
        if self.repeated:
            out.append(f"{count(self.repeated, 'validation row')} also in the training rows")
        state = {True: "found", False: "made", None: "off"}[self.hit]
        out.append(f"cache {state}: {self.key[:12]}")
        return out

    def _source_line(self, source: SourceReport) -> str:
        parts = [f"{source.path}: {source.format} ({source.decided}), {source.used:,} of {source.read:,} used"]
        parts += [f"{records:,} dropped: {reason}" for reason, records in source.dropped.items()]
        parts += [f"{source.truncated:,} truncated"] * bool(source.truncated)
        unused = [f"{column} (filled in {count:,} rows)" for column, count in source.ignored.items()]
        parts += [f"columns not used: {', '.join(unused)}"] * bool(unused)
        return ", ".join(parts)


def quantile_words(lengths: Mapping[str, int]) -> str:
    """`5 % 102, 50 % 180, 95 % 480, longest 912`."""
    return ", ".join(
        f"longest {value:,}" if name == "max" else f"{name} % {value:,}" for name, value in lengths.items()
    )


def quantiles(lengths: Sequence[int] | np.ndarray) -> dict[str, int]:
    """Tokens per row at 5, 50, 95 percent, and the most; each the length of a real row. Empty for no rows."""
    if len(lengths) == 0:
        return {}
    at = np.quantile(np.asarray(lengths), [0.05, 0.5, 0.95, 1.0], method="inverted_cdf")
    return dict(zip(("5", "50", "95", "max"), map(int, at), strict=True))


def histogram(lengths: Sequence[int] | np.ndarray) -> list[dict[str, int]]:
    """Rows by their tokens in at most BINS bins of the same whole width from 1 on, each named by the most it takes."""
    if len(lengths) == 0:
        return []
    width = max(1, -(-int(np.max(lengths)) // BINS))
    counts = np.bincount((np.maximum(np.asarray(lengths), 1) - 1) // width)
    return [{"up_to": (at + 1) * width, "rows": rows} for at, rows in enumerate(counts.tolist())]
