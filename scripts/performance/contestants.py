"""Who is measured: one entry each. A new contestant is a new entry, and a module with run(job, recorder) if need be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contestant:
    """One line of the tables."""

    name: str
    runner: str
    """module of this package"""
    says: str
    """for the page"""
    peer: bool = False
    """runs in the peers' environment"""
    options: dict[str, Any] = field(default_factory=dict)
    usual: bool = True
    """measured when no names are given"""


def lrft(name: str, says: str, *keys: str, usual: bool = True) -> Contestant:
    """lrft with some keys of its recipe changed."""
    return Contestant(name, "lrft_step", says, options={"recipe": list(keys)}, usual=usual)


def peer(name: str, runner: str, says: str, usual: bool = True, **options: Any) -> Contestant:
    return Contestant(name, runner, says, peer=True, options=options, usual=usual)


CONTESTANTS: tuple[Contestant, ...] = (
    Contestant(
        "limit", "limit", "hand-written, no adapter at all: the frozen base forward and backward, 4 rows a pass"
    ),
    lrft("lrft", "its defaults: micro-batches of 4 rows"),
    lrft("lrft, padded", "data.packing: false", "data.packing=false"),
    lrft("lrft, light", "training.gradient_checkpointing: light", "training.gradient_checkpointing=light"),
    lrft("lrft, full", "training.gradient_checkpointing: full", "training.gradient_checkpointing=full"),
    lrft("lrft, compiled", "training.compile: true", "training.compile=true", usual=False),
    lrft(
        "lrft, one pass",
        "training.micro_batch_size: 64, all rows at once, as the peers",
        "training.micro_batch_size=64",
        usual=False,
    ),
    peer("peft-loop", "peft_loop", "PEFT, hand-written loop, all rows in one padded batch"),
    peer("peft-loop, 4 rows", "peft_loop", "the same, 4 rows a pass as lrft", rows_at_once=4),
    peer("peft-trainer", "peft_trainer", "PEFT, transformers.Trainer, one padded batch"),
    peer("trl", "trl_trainer", "TRL SFTTrainer, one padded batch, checkpointing off"),
    peer(
        "trl-packing",
        "trl_trainer",
        "TRL SFTTrainer, packing=True (bfd, padding-free), checkpointing off",
        packing=True,
    ),
    peer(
        "trl-packing, memory",
        "trl_trainer",
        "TRL SFTTrainer, packing=True, checkpointing on, as is its default",
        usual=False,
        packing=True,
        checkpointing=True,
    ),
)


PREFERENCES: tuple[Contestant, ...] = (
    lrft("lrft, sft", "sft of the same sequences, chosen and rejected, each a row; micro-batches of 4 rows"),
    Contestant(
        "lrft, dpo",
        "lrft_step",
        "dpo, its reference computed before the first step; micro-batches of 2 pairs",
        options={"pairs": True, "recipe": ["training.objective=dpo", "training.micro_batch_size=2"]},
    ),
    Contestant(
        "lrft, dpo each step",
        "lrft_step",
        "dpo, reference: each-step",
        options={
            "pairs": True,
            "recipe": ["training.objective={dpo: {reference: each-step}}", "training.micro_batch_size=2"],
        },
    ),
    peer(
        "trl dpo",
        "trl_dpo",
        "TRL DPOTrainer, precompute_ref_log_probs=True, all pairs in one padded batch, checkpointing off",
        precompute=True,
    ),
    peer(
        "trl dpo, 2 pairs",
        "trl_dpo",
        "the same, 2 pairs a pass as lrft, their gradients accumulated",
        precompute=True,
        pairs_at_once=2,
    ),
    peer("trl dpo, each step", "trl_dpo", "TRL DPOTrainer, its defaults but for checkpointing, which is off"),
)


def chosen(names: str | None, among: Iterable[Contestant] = CONTESTANTS) -> list[Contestant]:
    """Those named, with semicolons between; the usual ones for None. Raises ValueError for a name that is none."""
    table = {entry.name: entry for entry in among}
    if names is None:
        return [entry for entry in table.values() if entry.usual]
    wanted = [name.strip() for name in names.split(";") if name.strip()]
    if unknown := [name for name in wanted if name not in table]:
        raise ValueError(f"no contestant is called {', '.join(unknown)}; there are: {'; '.join(table)}")
    return [table[name] for name in wanted]
