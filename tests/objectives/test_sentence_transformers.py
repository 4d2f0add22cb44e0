"""Embedding models against sentence-transformers itself: its losses on the same rows, and what it makes of our folders.

pip install sentence-transformers; pytest --all tests/objectives/test_sentence_transformers.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import classifiers
import embedders
import pytest
import torch
from transformers import AutoTokenizer

from lrft.data import Row, Rows
from lrft.export.merge import merge_adapter
from lrft.loading.saved import load_target
from lrft.model.embedder import Embedder
from lrft.model.head import Head
from lrft.model.load import load_model
from lrft.objectives.base import look_ahead
from lrft.objectives.embedding import Embedding

# It warns of packages for sound and pictures, and of names of its own that it has given up.
pytestmark = [pytest.mark.all, pytest.mark.filterwarnings("ignore")]
COSINE = ("query_to_doc",)
BOTH = ("query_to_doc", "doc_to_query")


def rows_of(tokenizer: Any, texts: list[list[str]]) -> Rows:
    made = []
    for k, row in enumerate(texts):
        each = [tokenizer(text, return_tensors="np")["input_ids"][0] for text in row]
        flat = torch.cat([torch.from_numpy(ids) for ids in each]).numpy().astype("int32")
        made.append(Row(flat, flat < 0, 0, "", "f#", k, parts=tuple(map(len, each))))
    return Rows.of(made)


@pytest.mark.parametrize(("name", "pooling"), [("bert", "mean"), ("llama", "last"), ("modernbert", "cls")])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.2, "symmetric": True},
        {"similarity": "dot", "temperature": 3.0},
        {"matryoshka": (24, 12, 6)},
    ],
    ids=["plain", "symmetric", "dot", "matryoshka"],
)
def test_losses_and_gradients_are_its_own(name: str, pooling: str, options: Any, tmp_path: Path) -> None:
    """With one hard negative for each row, in micro-batches of 3 of 8 rows."""
    pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
    from sentence_transformers.util import cos_sim, dot_score

    base = classifiers.save_base(tmp_path, name)
    embedder = Embedder(pooling, False, classifiers.WIDTH)
    embedder.save(base)
    texts = [[r["anchor"], r["positive"], f"{r['positive'][:-2]} {k}"] for k, r in enumerate(embedders.rows(8))]
    theirs = SentenceTransformer(str(base)).eval()
    objective = Embedding(**options)
    loss = MultipleNegativesRankingLoss(
        theirs,
        scale=1 / objective.temperature,
        similarity_fct=dot_score if objective.similarity == "dot" else cos_sim,
        directions=BOTH if objective.symmetric else COSINE,
        partition_mode="per_direction" if objective.symmetric else "joint",
    )
    if objective.matryoshka:
        loss = MatryoshkaLoss(theirs, loss, list(objective.matryoshka))
    expected = loss([theirs.preprocess(list(column)) for column in zip(*texts, strict=True)], torch.zeros(8))
    wanted = dict(theirs[0].model.named_parameters())
    slopes = dict(zip(wanted, torch.autograd.grad(expected, list(wanted.values()), allow_unused=True), strict=True))

    model = load_model(base, dtype=torch.float32, head=Head("embedding", embedder=embedder)).requires_grad_()
    ours = objective.module(model).train()  # without dropout: these bases have none
    ours.head = Head("embedding", embedder=embedder)
    rows = rows_of(AutoTokenizer.from_pretrained(base), texts)
    batches = [objective.collate(rows, ids, pad_id=2, form="padded") for ids in ([0, 1, 2], [3, 4, 5], [6, 7])]
    look_ahead(ours, ((batch, True) for batch in batches), lambda t: t)
    found = sum(ours(batch) for batch in batches) / 8
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    own = dict(model.named_parameters())
    grads = dict(zip(own, torch.autograd.grad(found, list(own.values()), allow_unused=True), strict=True))
    largest = max(slope.abs().max().item() for slope in slopes.values() if slope is not None)
    for key, slope in slopes.items():
        assert (slope is None) == (grads[key] is None)
        assert slope is None or (grads[key] - slope).abs().max().item() <= 1e-5 * largest, key


@pytest.mark.parametrize("name", classifiers.BASES)
def test_it_loads_the_adapter_and_the_merged_model(name: str, tmp_path: Path) -> None:
    """With the prompts, the pooling and the longest text that were trained; embeddings within 1e-5 of ours."""
    pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    from sentence_transformers import SentenceTransformer

    place = embedders.place(tmp_path, name)
    run = place.train("training.max_steps=4", "data.query_prompt='time: '", "data.max_length=48")
    adapter = (run / "last").resolve()
    merged = merge_adapter(adapter, run / "merged").out
    target = load_target(str(adapter), None, False)
    losses = target.objective.module(target.model).eval()
    losses.head = target.head
    texts = [row["anchor"] for row in embedders.rows(9, seed=1)] + ["  two  spaces", "a longer text " * 40]
    made = []
    for text in texts:
        ids = target.tokenizer(f"time: {text}", truncation=True, max_length=48, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            made.append(losses.embeddings(batch, torch.tensor([0]))[0])
    for folder in (adapter, merged):
        model = SentenceTransformer(str(folder))
        assert (model.max_seq_length, model.similarity_fn_name) == (48, "cosine")
        got = model.encode(texts, prompt_name="query", convert_to_tensor=True, batch_size=4)
        assert (got - torch.stack(made)).abs().max().item() < 1e-5
