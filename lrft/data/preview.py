"""Preview of rows with trained tokens marked, and the data counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from rich.text import Text

from lrft.data.dataset import Rows
from lrft.data.report import DataReport
from lrft.utils.text import count, visible

TRAINED, UNTRAINED, CUT, TITLE = "green", "dim", "red", "bold"


def render(rows: Rows, report: DataReport, tokenizer: Any, *, n: int = 5, colour: bool = True) -> Text:
    """A legend, `n` rows spread over the set, the report, and what is known of the rows that were dropped.

    colour: trained green, not trained dim, cut off red. Without: [[trained]], {{cut off}}.
    """
    out = legend(colour)
    places = np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)
    for i in places.tolist():
        trained, total = int(rows.trained(i).sum()), count(len(rows.tokens(i)), "token")
        says = f"label {visible(rows.answer(i)) or '(none)'}" if report.labels or not report.parts else ""
        says = says if report.whole else f"{trained:,} trained"
        title = f"row {i + 1:,} of {len(rows):,}   {visible(rows.source(i))}   {total}{says and f', {says}'}"
        title += f", weight {rows.weight(i):g}" if rows.weight(i) != 1 else ""
        out.append(title + "\n", TITLE if colour else "")
        for name, part in zip(*named_parts(report.parts, parts_text(rows, i, tokenizer, colour=colour)), strict=True):
            out.append(f"{name}\n" if name else "", TITLE if colour else "").append(part).append("\n")
        out.append("\n")
    for line in report.lines():
        out.append(visible(line) + "\n")
    for line in dropped_lines(report):
        out.append(line + "\n", CUT if colour else "")
    return out


def to_dict(rows: Rows, report: DataReport, tokenizer: Any, *, n: int = 5) -> dict[str, Any]:
    """The same rows and counts as values for JSON: of each row its text with [[trained]] and {{cut off}} marked."""
    shown = []
    for i in np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int).tolist():
        parts = [text.plain for text in parts_text(rows, i, tokenizer, colour=False)]
        counts = {"tokens": len(rows.tokens(i)), "trained": int(rows.trained(i).sum()), "weight": rows.weight(i)}
        shown.append({"row": i + 1, "source": rows.source(i), **counts, "parts": parts})
    return {"rows": shown, "data": report.to_dict()}


def named_parts(names: Sequence[str], parts: list[Text]) -> tuple[list[str], list[Text]]:
    """The sequences of a row and their names, of which the last is that of all beyond."""
    return [names[min(k, len(names) - 1)] if names else "" for k in range(len(parts))], parts


def legend(colour: bool) -> Text:
    """How the tokens of a row are marked."""
    if not colour:
        return Text("[[trained]]   not trained   {{cut off}}\n\n")
    out = Text()
    for words, style in (("trained", TRAINED), ("not trained", UNTRAINED), ("cut off", CUT)):
        out.append(words, style).append("   ")
    return out.append("\n\n")


def dropped_lines(report: DataReport) -> list[str]:
    """The rows that are left out by reason, with their places as far as the report holds them."""
    lines = []
    for source in report.sources:
        for reason, total in source.dropped.items():
            examples = [example for example in source.examples if example["reason"] == reason]
            lines += ["", f"{visible(source.path)}: {count(total, 'row')} dropped, {reason}"]
            for example in examples:
                lines.append(
                    f"  {visible('  '.join((example['source'], example['detail'], example['head']))).rstrip()}"
                )
            if examples and total > len(examples):
                lines.append(f"  and {total - len(examples):,} more")
    return lines


def parts_text(rows: Rows, i: int, tokenizer: Any, *, colour: bool) -> list[Text]:
    """The sequences of row i as text; behind the last stands how much is cut off."""
    parts = [sequence_text(*sequence, tokenizer, colour=colour) for sequence in rows.sequences(i)]
    if cut := rows.cut(i):
        words = f"{count(cut, 'token')} cut off"
        parts[-1].append(f" {words}" if colour else f"{{{{{words}}}}}", CUT if colour else "")
    return parts


def sequence_text(tokens: np.ndarray, trained: np.ndarray, tokenizer: Any, *, colour: bool) -> Text:
    """A sequence as text, its stretches marked by whether they are trained."""
    edges = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(tokens)]
    out, done = Text(), ""
    for start, stop in pairwise(edges):
        # The whole beginning is decoded each time: some tokenizers strip the space before a first token.
        text = tokenizer.decode(tokens[:stop].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        part, done = "\n".join(visible(line) for line in text[len(done) :].split("\n")), text
        if colour:
            out.append(part, TRAINED if trained[start] else UNTRAINED)
        else:
            out.append(f"[[{part}]]" if trained[start] else part)
    return out
