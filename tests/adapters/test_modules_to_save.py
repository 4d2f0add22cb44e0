"""A head trained in full: stock PEFT and transformers answer as the trained model does, from its folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import classifiers
import pytest
import tiny
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import lrft
from lrft.adapters.storage import load_adapter, read_adapter, save_adapter
from lrft.errors import CheckFailed, LrftError
from lrft.export.merge import merge_adapter
from lrft.model.load import load_model, load_skeleton
from lrft.model.weights import fingerprint

IDS = torch.tensor([[3, 4, 5, 7, 2, 2], [9, 8, 7, 6, 5, 4]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])


def ask(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, attention_mask=MASK).logits
    return found


def trained(base: Path, head: Any, method: Any = "lora", **more: Any) -> tuple[Any, Any]:
    """A model whose adapters and head are somewhere that no start is."""
    model = load_model(base, dtype=torch.float32, head=head, **more)
    attached = lrft.attach(model, {"method": method, "rank": 3}, seed=0)
    tiny.disturb(list(attached.trained().values()))
    return model, attached


def save(attached: Any, base: Path, head: Any, folder: Path) -> Path:
    folder.mkdir()
    info = {"name": str(base), "revision": None, "fingerprint": fingerprint(base), "head": head.to_dict()}
    save_adapter(attached, folder, base=info, seed=0)
    return folder


@pytest.mark.parametrize("name", classifiers.BASES)
def test_peft_and_transformers_answer_as_the_trained_model(name: str, tmp_path: Path) -> None:
    shards = {"max_shard_size": "20KB"} if name == "bert" else {}
    base, head = classifiers.save_base(tmp_path / "base", name, **shards), classifiers.HEAD
    plain = ask(load_model(base, dtype=torch.float32, head=head))
    model, attached = trained(base, head, "dora" if name == "roberta" else "lora")
    expected = ask(model)
    with attached.disabled():
        assert torch.equal(ask(model), plain)
    assert not torch.allclose(expected, plain)
    folder = save(attached, base, head, tmp_path / "adapter")
    again = load_model(base, dtype=torch.float32, head=head)
    load_adapter(again, folder)
    assert torch.equal(ask(again), expected)
    assert torch.allclose(ask(PeftModel.from_pretrained(classifiers.stock(base, head), folder)), expected, atol=1e-5)

    merged = merge_adapter(folder, tmp_path / "merged")
    found, loading = AutoModelForSequenceClassification.from_pretrained(merged.out, output_loading_info=True)
    assert not any(loading.values())
    assert torch.allclose(ask(found.eval()), expected, atol=1e-5)
    assert found.config.id2label == dict(enumerate(classifiers.LABELS))
    assert found.config.label2id == {word: k for k, word in enumerate(classifiers.LABELS)}
    assert (found.config.problem_type, found.config.pad_token_id) == (head.problem, head.pad_id)
    assert torch.equal(ask(attached.detach()), plain)


def test_a_heads_start_is_its_own_or_the_checkpoints(tmp_path: Path) -> None:
    """New: a function of the seed and the tensor's name. Of the checkpoint: where its outputs mean the same."""
    base = classifiers.save_base(tmp_path / "base", "bert")
    torch.manual_seed(1)
    one = load_model(base, dtype=torch.float32, head=classifiers.HEAD)
    torch.manual_seed(2)
    two = load_model(base, dtype=torch.float32, head=classifiers.HEAD)
    other = load_model(base, dtype=torch.float32, head=replace(classifiers.HEAD, seed=3))
    assert torch.equal(one.classifier.weight, two.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert one.classifier.bias.abs().sum() == 0
    assert one.classifier.weight.std().item() == pytest.approx(one.config.initializer_range, rel=0.3)
    one.classifier.weight.data.fill_(0.5)
    one.save_pretrained(tmp_path / "classifier")
    for labels, kept in ((classifiers.LABELS, True), (("a", "b", "c"), False), (("bad", "good"), False)):
        again = load_model(tmp_path / "classifier", dtype=torch.float32, head=replace(classifiers.HEAD, labels=labels))
        assert bool((again.classifier.weight == 0.5).all()) == kept
        assert torch.equal(again.bert.pooler.dense.weight, one.bert.pooler.dense.weight)


def test_half_precision_and_quantised_bases_keep_a_float32_head(tmp_path: Path) -> None:
    base = classifiers.save_base(tmp_path / "base", "llama")
    model = load_model(base, dtype=torch.bfloat16, head=classifiers.HEAD)
    attached = lrft.attach(model, {"method": "lora", "rank": 3}, seed=0)
    assert all(p.dtype == torch.float32 for p in attached.trained().values())
    assert ask(model).dtype == torch.float32
    skeleton = load_skeleton(base, head=classifiers.HEAD)
    assert type(skeleton.score) is torch.nn.Linear
    quantised = load_model(base, dtype=torch.float32, head=classifiers.HEAD, quantization="nf4")
    assert type(quantised.score) is torch.nn.Linear
    assert type(quantised.model.layers[0].mlp.up_proj).__name__ == "QuantizedLinear"


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    base, head = classifiers.save_base(tmp_path / "base", "llama"), classifiers.HEAD
    _, attached = trained(base, head)
    folder = save(attached, base, head, tmp_path / "adapter")
    assert read_adapter(folder).head == head
    with pytest.raises(CheckFailed, match=r"this model's head \(none\) is not the one that was saved .* \(score\)"):
        load_adapter(load_model(base, dtype=torch.float32), folder)
    with pytest.raises(CheckFailed, match=r"this model's head \(score\) is not the one"):
        load_adapter(load_model(base, dtype=torch.float32, head=replace(head, labels=("a", "b"))), folder)
    with pytest.raises(lrft.errors.RecipeError, match="score, which cannot have an adapter: trained in full"):
        lrft.attach(load_model(base, dtype=torch.float32, head=head), {"method": "lora", "target_modules": ["score"]})
    config = base / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "mamba"'))
    with pytest.raises(
        LrftError, match="of type mamba, for which transformers has no AutoModelForSequenceClassificati"
    ):
        load_model(base, dtype=torch.float32, head=head)
