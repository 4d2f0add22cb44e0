"""Embeddings of texts, learnt by contrast: each query is to find its document among all of the optimiser step.

The loss is InfoNCE with in-batch negatives (van den Oord et al., 2018, arXiv 1807.03748, equation 4; Henderson et al.,
2017, arXiv 1705.00652, section 4.4), the MultipleNegativesRankingLoss of sentence-transformers. The step may be larger
than a micro-batch: all its embeddings are made first, without gradients, and each micro-batch then takes the gradient
of the step's loss at its own (Gao et al., 2021, arXiv 2101.06983). Matryoshka: Kusupati et al., 2022, arXiv 2205.13147,
equation 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from lrft.data import Rows
from lrft.data.collate import Form, collate
from lrft.model.embedder import Embedder, stored_embedder, usual_pooling
from lrft.model.head import Head
from lrft.objectives.base import Asked, LossModule, Objective
from lrft.objectives.cross_entropy import wide
from lrft.objectives.figures import of_ranks


@dataclass(frozen=True)
class Embedding(Objective):
    """Embeddings for search and similarity, from pairs of texts that belong together, also with negatives.

    The loss of a row is the cross-entropy of its document among all documents and negatives of the optimiser step.
    """

    name: ClassVar[str] = "embedding"
    rows: ClassVar[str] = "pairs"
    head: ClassVar[str] = "embedding"
    # An embedding is of a whole text, of which whoever asks the model later reads the beginning too.
    defaults: ClassVar[dict[str, Any]] = {"data.too_long": "truncate"}
    unit: ClassVar[str] = "pair"
    compares_rows: ClassVar[bool] = True

    pooling: Literal["auto", "mean", "last", "cls"] = "auto"
    """What of the last hidden states is the embedding. auto: as the base says, else mean of an encoder's and last of a
    decoder's."""
    normalize: Literal["auto"] | bool = "auto"
    """Embeddings of length one. auto: as the base says, else true."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """How embeddings are compared."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """What similarities are divided by: one over the scale of sentence-transformers."""
    symmetric: bool = False
    """Also finds the query of each document, and takes the mean of both losses."""
    matryoshka: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
    """Widths whose losses are added up, such as [384, 192, 96]: the first numbers of an embedding are one as well."""
    matryoshka_weights: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)] = ()
    """Weight of the loss of each width; default 1."""

    @classmethod
    def of_head(cls, head: Head) -> Embedding:
        dot = head.embedder is not None and head.embedder.similarity == "dot"
        return cls(similarity="dot" if dot else "cosine")

    def weight(self, rows: Rows, ids: Iterable[int]) -> int:
        return sum(1 for _ in ids)

    def batch_weight(self, batch: Mapping[str, Tensor]) -> int:
        return len(batch["row"])

    def collate(self, rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, Tensor]:
        """input_ids and attention_mask int64 (S, T), for each row its query, its document and its negatives in turn;
        texts int64 (S,), equal for equal texts; row int64 (B,), its id; counts int64 (B,), its sequences without the
        query. Raises ValueError for another form than padded."""
        if form != "padded":
            raise ValueError("embeddings are of padded batches")
        batch = collate(rows, ids, pad_id=pad_id, form=form)
        del batch["labels"]
        texts = [number_of(tokens.tobytes()) for i in ids for tokens, _ in rows.sequences(i)]
        counts = [int(rows.counts[i]) - 1 for i in ids]
        return batch | {
            "texts": torch.tensor(texts),
            "row": torch.tensor([int(i) for i in ids]),
            "counts": torch.tensor(counts),
        }

    def head_for(self, asked: Asked) -> Head:
        """Raises ValueError for widths that an embedding does not have."""
        stored = None if asked.folder is None else stored_embedder(asked.folder)
        width = asked.config.get_text_config().hidden_size
        if wide_ones := [each for each in self.matryoshka if each > width]:
            raise ValueError(f"matryoshka: an embedding has {width} numbers, so there is no width {max(wide_ones)}")
        if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka):
            given, wanted = len(self.matryoshka_weights), len(self.matryoshka)
            raise ValueError(f"matryoshka_weights has {given} numbers for {wanted} widths: expected one for each")
        pooling = self.pooling if self.pooling != "auto" else stored.pooling if stored else usual_pooling(asked.config)
        normalized = self.normalize if self.normalize != "auto" else stored is None or stored.normalize
        embedder = Embedder(
            pooling, normalized, width, self.similarity, asked.report.max_length, dict(asked.report.prompts)
        )
        return Head(self.head, pad_id=asked.pad_id, seed=asked.seed, embedder=embedder)

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return of_ranks(sums["ranks"]) if "ranks" in sums else super().figures(sums)

    def module(self, model: nn.Module, *, direct: bool = False) -> ContrastiveLoss:
        return ContrastiveLoss(model, self)


def number_of(content: bytes) -> int:
    """A number of 64 bits for a text's tokens."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], signed=True)


def pooled(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """(S, width) of the last hidden states (S, T, width). mask (S, T): 1 for tokens, which padding follows. how: of
    `lrft.model.embedder.POOLINGS`."""
    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(dim=1) - 1]
    held = mask[:, :, None].to(hidden.dtype)
    return (hidden * held).sum(dim=1) / held.sum(dim=1)


@dataclass(frozen=True)
class Compared:
    """N rows that are compared with each other: a query each (N, width), and M documents (M, width), those of a row in
    turn, of which the first is its own and the others are negatives. counts (N,): documents of each. rows (N,): ids.
    query_texts (N,) and texts (M,): equal for equal texts."""

    queries: Tensor
    documents: Tensor
    counts: Tensor
    rows: Tensor
    query_texts: Tensor
    texts: Tensor

    @property
    def first(self) -> Tensor:
        """(N,) the number of each row's own document."""
        return self.counts.cumsum(0) - self.counts

    def with_own(self, own: Compared) -> tuple[Compared, Tensor]:
        """The same with the embeddings of `own` rows, which are some of these; and which they are (n,)."""
        places = places_of(own.rows, self.rows)
        inside = torch.cat(
            [
                first + torch.arange(n, device=first.device)
                for first, n in zip(self.first[places], own.counts.tolist(), strict=True)
            ]
        )
        queries = self.queries.index_copy(0, places, own.queries)
        documents = self.documents.index_copy(0, inside, own.documents)
        return Compared(queries, documents, self.counts, self.rows, self.query_texts, self.texts), places


def places_of(some: Tensor, of: Tensor) -> Tensor:
    """(n,) where each of `some` (n,) is among `of` (N,). The second of two that are equal is the second there."""
    nth = (some[:, None] == some).tril(-1).sum(dim=1)
    equal = some[:, None] == of
    return (equal & (equal.cumsum(dim=1) == nth[:, None] + 1)).int().argmax(dim=1)


class ContrastiveLoss(LossModule):
    """Sum over rows of the cross-entropy of their document among all that is compared.

    A document that is the text of a query's own, or the own document of an equal query, is none of its negatives.
    """

    gathers: ClassVar[bool] = True
    tells_sources: ClassVar[bool] = True

    def __init__(self, model: nn.Module, objective: Embedding) -> None:
        super().__init__(model)
        self.objective = objective

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        if not self.gathered:
            own = self.embedded(batch)
            losses = self.losses(own, torch.arange(len(own.rows), device=own.rows.device))
            self.note_rows(losses, batch)
            return losses.sum()
        whole = Compared(**self.gathered)
        if not self.training:  # all is known already
            return self.losses(whole, places_of(batch["row"], whole.rows)).sum()
        whole, places = whole.with_own(self.embedded(batch))
        losses = self.losses(whole, torch.arange(len(whole.rows), device=places.device), places)
        self.note_rows(losses[places], batch)
        total = losses.sum()
        # What these rows say is their share of the loss; what they are told is the slope of all of it.
        return losses[places].sum().detach() + total - total.detach()

    def gather(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return vars(self.embedded(batch))

    def embedded(self, batch: Mapping[str, Tensor]) -> Compared:
        """The rows of a batch, by themselves. Queries and documents are passed apart: their lengths differ."""
        counts = batch["counts"]
        at = torch.arange(len(batch["texts"]), device=counts.device)
        is_query = torch.isin(at, (counts + 1).cumsum(0) - counts - 1)
        queries, documents = (self.embeddings(batch, at[chosen]) for chosen in (is_query, ~is_query))
        texts = batch["texts"]
        return Compared(queries, documents, counts, batch["row"], texts[is_query], texts[~is_query])

    def embeddings(self, batch: Mapping[str, Tensor], places: Tensor) -> Tensor:
        """(n, width) of the sequences at `places` (n,), at least float32."""
        if self.head is None or self.head.embedder is None:
            raise ValueError("a head is required, which says how embeddings are made")
        mask = batch["attention_mask"][places]
        longest = int(mask.sum(dim=1).max())
        ids, mask = batch["input_ids"][places, :longest], mask[:, :longest]
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        found = pooled(wide(hidden), mask, self.head.embedder.pooling)
        return normalize(found, dim=-1) if self.head.embedder.normalize else found

    def losses(self, compared: Compared, asked: Tensor, noted: Tensor | None = None) -> Tensor:
        """(n,) of the rows `asked`. noted: those that count in the figures; None for all."""
        objective = self.objective
        widths = objective.matryoshka or (compared.queries.shape[1],)
        weights = objective.matryoshka_weights or (1.0,) * len(widths)
        self.note_figures(compared, asked if noted is None else noted)
        return torch.stack([w * self.at_width(compared, asked, n) for w, n in zip(weights, widths, strict=True)]).sum(0)

    def at_width(self, compared: Compared, asked: Tensor, width: int) -> Tensor:
        """(n,) of the rows `asked`, from the first `width` numbers of the embeddings."""
        own = compared.first[asked]
        queries, documents = compared.queries[:, :width], compared.documents[:, :width]
        scores = self.scores(queries[asked], documents)
        found = cross_entropy_at(scores, own, self.right_ones(compared, asked))
        if not self.objective.symmetric:
            return found
        scores = self.scores(documents[own], queries)
        excluded = compared.query_texts[asked, None] == compared.query_texts
        excluded = excluded | (compared.texts[own, None] == compared.texts[compared.first])
        return (found + cross_entropy_at(scores, asked, excluded)) / 2

    def scores(self, some: Tensor, others: Tensor) -> Tensor:
        """(n, m), of (n, width) and (m, width)."""
        if self.objective.similarity == "cosine":
            some, others = normalize(some, dim=-1), normalize(others, dim=-1)
        return some @ others.T / self.objective.temperature

    def right_ones(self, compared: Compared, asked: Tensor) -> Tensor:
        """(n, M) which documents are a right answer to each of the rows `asked`."""
        owner = torch.arange(len(compared.counts), device=asked.device).repeat_interleave(compared.counts)
        same = compared.texts[compared.first[asked], None] == compared.texts
        is_own = torch.zeros_like(owner, dtype=torch.bool).index_fill(0, compared.first, True)
        return same | (is_own & (compared.query_texts[asked, None] == compared.query_texts[owner]))

    @torch.no_grad()
    def note_figures(self, compared: Compared, rows: Tensor) -> None:
        """The rank of each row's own document among all, of the whole width."""
        own = compared.first[rows]
        scores = self.scores(compared.queries[rows], compared.documents)
        right = scores.gather(1, own[:, None])
        ranks = 1 + ((scores > right) & ~self.right_ones(compared, rows)).sum(dim=1)
        if self.training:
            self.note("in-batch accuracy", (ranks == 1).double())
        else:
            tenth, inverse = (ranks <= 10).sum(), (1 / ranks.double()).sum()
            self.note_sum("ranks", torch.stack([(ranks == 1).sum(), tenth, inverse, ranks.new_tensor(len(ranks))]))


def cross_entropy_at(scores: Tensor, right: Tensor, excluded: Tensor) -> Tensor:
    """-log softmax of scores (n, m) at `right` (n,), without those `excluded` (n, m), of which that one may be."""
    others = scores.masked_fill(excluded.scatter(1, right[:, None], False), -torch.inf)
    return others.logsumexp(dim=1) - scores.gather(1, right[:, None])[:, 0]
