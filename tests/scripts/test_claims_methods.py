"""Claims of methods that were added later: their rules, and what they measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from judged_claims import shows
from paper_claims.claim import Verdict, together
from paper_claims.papers import factorisation, few_rows, near_full

import lrft
from lrft.adapters.storage import save_adapter

# --- judgements ---


def test_more_is_learned_in_the_same_memory() -> None:
    names = ("galore", "coap", "online-subspace-descent")

    def both(losses: list[list[float]], state: list[float]) -> bool:
        states = {name: [size, size] for name, size in zip(names, state, strict=True)}
        return shows("equal-memory", dict(zip(names, losses, strict=True)), state=states)

    lower = [[2.0, 2.1], [1.9, 2.0], [1.8, 2.05]]
    assert both(lower, [1.0, 1.0, 1.1])
    assert not both(lower, [1.0, 1.0, 1.2]), "one keeps too much"
    assert not both([[2.0, 2.1], [1.9, 2.1], [1.8, 2.0]], [1.0, 1.0, 1.0]), "no lower on one seed"


def test_nearer_to_full() -> None:
    def near(lora: list[float], loft: list[float], rite: list[float]) -> bool:
        found = {"full": [0.0, 0.0], "lora": lora, "loft": loft, "lora-rite": rite}
        return shows("near-full", distance=found)

    assert near([1.0, 1.0], [0.5, 0.9], [0.9, 0.9])
    assert not near([1.0, 1.0], [0.5, 0.9], [0.9, 1.0]), "no nearer on one seed"
    assert not near([0.5, 0.5], [1.0, 1.0], [0.4, 0.4])


def test_the_split_does_not_count() -> None:
    def same(lora: list[float], riemann: list[float], rite: list[float]) -> bool:
        return shows("factorisation", change={"lora": lora, "riemannlora": riemann, "lora-rite": rite})

    assert same([0.9, 0.2], [1e-5, 0.01], [0.0, 1e-4])
    assert not same([0.9, 0.2], [1e-5, 0.02], [0.0, 1e-4]), "on one seed it does"
    assert not same([0.9, 0.05], [1e-5, 1e-5], [0.0, 1e-4]), "nor for LoRA"


def test_keeps_more_and_has_learned() -> None:
    def keeps(rises: list[list[float]], gains: list[list[float]]) -> bool:
        names = ("lora", "curlora", "comp-lora")
        rise, gain = (dict(zip(names, those, strict=True)) for those in (rises, gains))
        return shows("kept-knowledge", rise=rise, gain=gain)

    less, learned = [[0.5, 0.6], [0.1, 0.2], [0.4, 0.5]], [[4.0, 4.0], [3.7, 3.8], [4.1, 4.1]]
    assert keeps(less, learned)
    assert not keeps([[0.5, 0.6], [0.1, 0.6], [0.4, 0.5]], learned), "as much is forgotten on one seed"
    assert not keeps(less, [[4.0, 4.0], [3.5, 3.8], [4.1, 4.1]]), "it has not learned"


def test_a_rank_twice_as_high_of_heads() -> None:
    assert shows("parallel-rank", rank={"lora": [8.0, 8.0], "lte": [16.0, 30.0]})
    assert not shows("parallel-rank", rank={"lora": [8.0, 8.0], "lte": [15.9, 30.0]})


def test_fits_less() -> None:
    def better(losses: list[list[float]]) -> bool:
        values = dict(zip(("lora", "lora-ggpo", "bilora"), losses, strict=True))
        return shows("few-rows", values, trained={name: [0.1, 0.1] for name in values})

    assert better([[2.0, 2.1], [1.9, 2.0], [1.8, 2.0]])
    assert not better([[2.0, 2.1], [1.9, 2.1], [1.8, 2.0]])
    assert not better([[2.0, 2.1], [1.9, 2.0], [2.2, 2.0]])


def test_the_figures_say_for_which_of_several_methods_a_claim_holds() -> None:
    assert together({"a": True, "b": True}, "x.") == Verdict(True, "x.")
    assert together({"a": False, "b": False}, "x.") == Verdict(False, "x.")
    assert together({"a": False, "b": True}, "x.") == Verdict(False, "x. For b alone it holds, for a it does not.")


def test_carries_over() -> None:
    assert shows("loram", {"lora": [1.0, 1.0], "loram": [1.2, 1.2]}, gain={"lora": [5.0, 5.0], "loram": [4.0, 4.5]})
    assert not shows("loram", {"lora": [1.0, 1.0], "loram": [1.2, 1.2]}, gain={"lora": [5.0, 5.0], "loram": [3.9, 5.0]})


# --- measures ---


def saved(folder: Path, size: float) -> Path:
    model = tiny.make("llama")
    attached = lrft.attach(model, {"rank": 4})
    tiny.disturb(list(attached.trained().values()), size=size)
    (folder / "last").mkdir(parents=True)
    save_adapter(attached, folder / "last", base={"name": "tiny"})
    torch.save([attached.delta(name) for name in attached.modules], folder / "deltas.pt")
    return folder


def test_the_distance_is_that_of_all_layers_over_the_baselines_length(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one", 0.05), saved(tmp_path / "other", 0.2)
    a, b = (torch.load(folder / "deltas.pt") for folder in (one, other))
    squares = [sum(float(((x - y) ** 2).sum()) for x, y in zip(p, q, strict=True)) for p, q in ((a, b), (b, b))]
    length = sum(float((y**2).sum()) for y in b)
    assert near_full.distance(str(one), str(other)) == pytest.approx((squares[0] / length) ** 0.5, rel=1e-4)
    assert near_full.distance(str(other), str(other)) == 0


def test_another_basis_is_well_conditioned_and_no_rotation() -> None:
    M = factorisation.other_basis(5, torch.Generator().manual_seed(0))
    S = torch.linalg.svdvals(M)
    assert S.max().item() == pytest.approx(2.0)
    assert S.min().item() == pytest.approx(0.5)


def test_the_loss_of_the_last_pass_over_the_rows(tmp_path: Path) -> None:
    lines = [{"kind": "step", "loss": float(n)} for n in range(10)] + [{"kind": "eval", "loss": 99.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert few_rows.trained_loss(str(tmp_path), "") == pytest.approx((4 + 5 + 6 + 7 + 8 + 9) / 6)
