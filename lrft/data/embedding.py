"""Check for token ids outside the model's embedding, which would crash a GPU run without explanation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lrft.data.dataset import Rows
from lrft.errors import DataError


def refuse_missing_rows(sets: Sequence[Rows | None], embedding: int | None, tokenizer: Any) -> None:
    """Raise DataError when a row holds a token whose id is not below `embedding`, the rows of the model's embedding.

    embedding: None when the model's configuration does not say.
    """
    held = [rows for rows in sets if rows is not None]
    if embedding is None or all(rows.largest_token() < embedding for rows in held):
        return
    found = [(rows, i) for rows in held for i in range(len(rows)) if rows.tokens(i).max(initial=0) >= embedding]
    rows, i = found[0]
    token = next(int(t) for t in rows.tokens(i) if t >= embedding)
    raise DataError(
        f"token {tokenizer.convert_ids_to_tokens(token)!r} (id {token}) of {rows.source(i)} has no row in the model's "
        f"embedding ({embedding:,} rows); {len(found):,} of {sum(map(len, held)):,} rows hold such a token",
        "Use the model's own tokenizer, or a base whose embedding was resized for this tokenizer.",
    )
