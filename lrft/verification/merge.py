"""Merge check: logits of the merged folder against base + adapter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters.peft_import import placed, read_any
from lrft.adapters.storage import load_saved
from lrft.errors import CheckFailed
from lrft.loading.saved import load_as_trained, load_plain
from lrft.model.layers import makes_chosen_logits, outputs_in
from lrft.model.modes import evaluation_mode
from lrft.model.weights import weight_files
from lrft.runs.locate import trusts_remote_code
from lrft.runs.probe import probe
from lrft.utils.hardware import release_memory

PROBE_POSITIONS = 32  # logits of all of them would be tens of GB with a large vocabulary
# Largest logit difference over the largest logit, by the dtype that the merged weights are stored in.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
# Of a quantised base's mean logit difference from the original: how much farther than that a merge into the original
# may be from the adapter. (What is trained passes through layers that are all a little different.)
QUANTIZED_SHARE = 3.0


@dataclass(frozen=True)
class Quantized:
    """How far apart a quantised base and the original one are. Means of absolute logit differences over the probe."""

    kind: str
    mean: float
    """merged model on the original base vs. adapter on the quantised base"""
    base: float
    """original base vs. quantised base"""
    update: float
    """the adapter's effect on the original base vs. its effect on the quantised base"""


@dataclass(frozen=True)
class Difference:
    """Merged against adapter. Logits are compared in float32 over all positions of the probe."""

    rows: int
    tokens: int
    largest: float
    mean: float
    largest_logit: float
    same_first: float
    """share of positions with the same most likely token"""
    changed: float
    """largest logit difference between adapter and base: zero means that the adapter does nothing"""
    mean_changed: float
    tolerance: float
    limit_of_dtype: float
    """default tolerance of the merged dtype"""
    quantized: Quantized | None = None
    """where the adapter was trained on a quantised base and merged into the original one"""
    choice: str = "first token"
    """what is most likely at a position: of a model that answers a row as a whole, a label"""

    @property
    def relative(self) -> float:
        return self.largest / self.largest_logit

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"relative": self.relative}


def verify_merge(
    merged: Path, adapter: Path, *, base_folder: Path, tolerance: float | None = None, into: str = "original"
) -> Difference:
    """Compare, and raise CheckFailed above the tolerance, when the adapter changes nothing, or when its change is lost.

    tolerance   of the largest logit difference relative to the largest logit; None: by the merged dtype
    into        original or dequantized, as it was merged. An adapter that was trained on a quantised base does not
                answer the same on the original one: there, what it changes must be kept, and the difference must not
                be more than `QUANTIZED_SHARE` times that of the two bases (beyond what rounding may do).
    """
    rows = probe(adapter, base_folder)
    dtype = stored_dtype(merged)
    trusted = trusts_remote_code(adapter)
    saved = read_any(adapter)
    choice = "first token" if saved.head is None else saved.head.choice
    model = load_as_trained(saved, base_folder, trust_remote_code=trusted, widen=True)
    attached = load_saved(model, placed(saved, model))
    expected = logits(model, rows)
    with attached.disabled():
        untouched = logits(model, rows)
    del model, attached
    release_memory()  # the next one may not fit beside it
    got = logits(load_plain(merged, trust_remote_code=trusted), rows)

    found = compare(got, expected, untouched, tolerance=tolerance, dtype=dtype)
    difference = replace(found, choice=choice)
    if difference.changed == 0:
        raise CheckFailed("the adapter has no effect: its logits equal the base's")
    if saved.quantization != "none" and into == "original":
        original = logits(load_plain(base_folder, trust_remote_code=trusted, head=saved.head), rows)
        apart = compare_quantized(saved.quantization, got, expected, untouched, original)
        refuse_quantized(difference, apart, merged, within=tolerance)
        return replace(difference, quantized=apart)
    if difference.mean >= difference.mean_changed:
        raise CheckFailed(
            f"merging lost the update: merged logits differ from the adapter's as much as the base's do (mean "
            f"difference "
            f"{difference.mean:.1e} and {difference.mean_changed:.1e})",
            f"The merged folder was kept for inspection: {merged}. Use a wider --dtype to reduce rounding.",
        )
    if not difference.relative <= difference.tolerance:
        raise CheckFailed(
            f"merged and adapter differ by {difference.relative:.1e} of the largest logit "
            f"(tolerance {difference.tolerance:.0e}); same {choice} at {difference.same_first:.2%} of positions",
            f"The merged folder was kept for inspection: {merged}. Use a wider --dtype to reduce rounding.",
        )
    return difference


def refuse_quantized(difference: Difference, found: Quantized, merged: Path, *, within: float | None) -> None:
    """Raises CheckFailed for a merge into the original base that does not keep what was trained on the quantised one.

    within   the tolerance that was asked for, in place of the bound by what quantisation does
    """
    hint = (
        f"The merged folder was kept for inspection: {merged}. Use --into dequantized to merge into the weights "
        f"used in training."
    )
    if found.update >= difference.mean_changed:
        raise CheckFailed(
            f"the adapter does not have the same effect on the original base as on the {found.kind} base (mean "
            f"logit difference between the effects {found.update:.1e}, size of the effect "
            f"{difference.mean_changed:.1e})",
            hint,
        )
    limit = QUANTIZED_SHARE * found.base + difference.tolerance * difference.largest_logit
    if within is None and not found.mean <= limit:
        raise CheckFailed(
            f"merged and adapter differ by {found.mean:.1e} in the mean logit, the two bases by {found.base:.1e}: more "
            f"than quantisation explains (at most {limit:.1e})",
            hint,
        )
    if within is not None and not difference.relative <= within:
        raise CheckFailed(
            f"merged and adapter differ by {difference.relative:.1e} of the largest logit (tolerance {within:.0e})",
            hint,
        )


def compare(
    got: Sequence[Tensor],
    expected: Sequence[Tensor],
    untouched: Sequence[Tensor],
    *,
    tolerance: float | None,
    dtype: str,
) -> Difference:
    """Figures over rows of logits (n, vocabulary)."""
    distances = [(g - e).abs() for g, e in zip(got, expected, strict=True)]
    changes = [(e - u).abs() for e, u in zip(expected, untouched, strict=True)]
    tokens = sum(len(e) for e in expected)
    same = sum(int((g.argmax(-1) == e.argmax(-1)).sum()) for g, e in zip(got, expected, strict=True))
    return Difference(
        rows=len(expected),
        tokens=tokens,
        largest=max(d.max().item() for d in distances),
        mean=sum(d.mean(dim=-1).sum().item() for d in distances) / tokens,
        largest_logit=max(e.abs().max().item() for e in expected),
        same_first=same / tokens,
        changed=max(c.max().item() for c in changes),
        mean_changed=sum(c.mean(dim=-1).sum().item() for c in changes) / tokens,
        tolerance=TOLERANCE[dtype] if tolerance is None else tolerance,
        limit_of_dtype=TOLERANCE[dtype],
    )


def compare_quantized(
    kind: str,
    got: Sequence[Tensor],
    expected: Sequence[Tensor],
    untouched: Sequence[Tensor],
    original: Sequence[Tensor],
) -> Quantized:
    """Figures over rows of logits: merged, adapter on the quantised base, that base, and the original one."""
    tokens = sum(len(e) for e in expected)

    def mean(differences: Iterable[Tensor]) -> float:
        return sum(d.abs().mean(dim=-1).sum().item() for d in differences) / tokens

    together = list(zip(got, expected, untouched, original, strict=True))
    return Quantized(
        kind=kind,
        mean=mean(g - e for g, e, _, _ in together),
        base=mean(o - u for _, _, u, o in together),
        update=mean((g - o) - (e - u) for g, e, u, o in together),
    )


def logits(model: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """Logits (n, vocabulary) of each row alone, on the CPU, at no more than PROBE_POSITIONS places spread over it; of a
    model that answers a row as a whole (1, labels); of a model without a head its last hidden states."""
    chosen, device = makes_chosen_logits(model), next(model.parameters()).device
    found = []
    with evaluation_mode(model):
        for row in rows:
            at = torch.linspace(0, len(row) - 1, min(len(row), PROBE_POSITIONS)).long().to(device)
            keep = {"logits_to_keep": at} if chosen else {}
            made = outputs_in(model(input_ids=row[None].to(device), use_cache=False, **keep))
            if made.ndim == 3:
                made = made[0] if chosen else made[0, at]
            found.append(made.float().cpu())
    return found


def stored_dtype(folder: Path) -> str:
    """The narrowest float dtype among a folder's tensors: the one that decides what rounding may cost."""
    from lrft.utils.safetensors_stream import TensorReader

    names = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found = set()
    for path in weight_files(folder):
        with TensorReader(path) as reader:
            found |= {names[e.dtype] for e in reader.entries.values() if e.dtype in names}
    return max(found, key=lambda name: TOLERANCE[name], default="float32")
