"""Which rows of a step go through the model together: so many rows a pass, or rows of so many tokens."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrft.data.collate import micro_batches
from lrft.data.dataset import Rows


@dataclass(frozen=True)
class PassSize:
    """How much a pass takes.

    rows: at most so many. tokens: in the place of `rows`, at most so many, but for a row that is longer by itself.
    padded: rows lie side by side, and a pass has as many tokens as its longest sequence times its sequences.
    """

    rows: int
    tokens: int | None = None
    padded: bool = False

    def passes(self, rows: Rows, ids: Sequence[int] | np.ndarray, *, rank: int = 0, world: int = 1) -> list[list[int]]:
        """The ids of each pass of `rank` in a step over the rows `ids`, the largest pass first.

        Every rank gets the same number of lists; a list is empty where there are not enough rows (see `micro_batches`).
        """
        if self.tokens is None:
            return micro_batches(ids, rows.lengths, micro=self.rows, rank=rank, world=world)
        return self._by_tokens(rows, np.asarray(ids, dtype=np.int64), world)[rank::world]

    def _by_tokens(self, rows: Rows, ids: np.ndarray, world: int) -> list[list[int]]:
        assert self.tokens is not None
        longest_first = ids[np.argsort(-rows.lengths[ids], kind="stable")].tolist()
        most = math.ceil(len(ids) / world)  # a row each
        least = min(most, math.ceil(int(rows.lengths[ids].sum()) / (self.tokens * world)))
        for passes in range(least, most + 1):
            made = self._dealt(rows, longest_first, passes * world)
            if all(len(some) <= 1 or self.tokens_of(rows, some) <= self.tokens for some in made):
                break
        return made

    def _dealt(self, rows: Rows, longest_first: Sequence[int], count: int) -> list[list[int]]:
        """The rows in `count` even passes: each row goes to the pass that has the fewest tokens so far."""
        made: list[list[int]] = [[] for _ in range(count)]
        tokens, sequences, longest = [0] * count, [0] * count, [0] * count
        waiting = [(0, n) for n in range(count)]
        for row in longest_first:
            _, n = heapq.heappop(waiting)
            made[n].append(row)
            sequences[n] += int(rows.counts[row])
            longest[n] = max(longest[n], int(rows.longest[row]))
            tokens[n] = sequences[n] * longest[n] if self.padded else tokens[n] + int(rows.lengths[row])
            heapq.heappush(waiting, (tokens[n], n))
        return [made[n] for n in sorted(range(count), key=lambda n: -tokens[n])]

    def tokens_of(self, rows: Rows, ids: Sequence[int]) -> int:
        """Tokens of a pass over `ids`, padding included."""
        if not len(ids):
            return 0
        if self.padded:
            return int(rows.counts[ids].sum()) * int(rows.longest[ids].max())
        return int(rows.lengths[ids].sum())
