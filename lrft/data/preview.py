"""What the model will see: some rows with the tokens that count in the loss set apart, and the counts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from rich.text import Text

from lrft.data.dataset import Rows
from lrft.data.report import DataReport
from lrft.utils.text import visible

TRAINED, UNTRAINED, CUT, TITLE = "green", "dim", "red", "bold"


def render(rows: Rows, report: DataReport, tokenizer: Any, *, n: int = 5, colour: bool = True) -> Text:
    """`n` rows spread over the set, then the report and its examples of rows that were left out.

    colour: trained green, not trained dim, cut off red. Without: [[trained]], {{cut off}}.
    """
    out = Text()
    places = np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int)
    for i in places.tolist():
        trained, total = int(rows.trained(i).sum()), len(rows.tokens(i))
        out.append(f"{visible(rows.source(i))}  {total:,} tokens, {trained:,} trained\n", TITLE if colour else "")
        out.append_text(row_text(rows, i, tokenizer, colour=colour))
        out.append("\n\n")
    for line in report.lines():
        out.append(visible(line) + "\n")
    for source in report.sources:
        for example in source.examples:
            words = f"{example['source']}  {example['reason']}: {example['detail']}   {example['head']}"
            out.append(f"  {visible(words).rstrip()}\n", CUT if colour else "")
    return out


def row_text(rows: Rows, i: int, tokenizer: Any, *, colour: bool) -> Text:
    """Row i as text, its stretches marked by whether they are trained."""
    tokens, trained = rows.tokens(i), rows.trained(i)
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
    if cut := rows.cut(i):
        words = f"{cut:,} tokens cut off"
        out.append(f" {words}" if colour else f"{{{{{words}}}}}", CUT if colour else "")
    return out
