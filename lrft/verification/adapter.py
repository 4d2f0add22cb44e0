"""Check of a converted adapter: logits of base + converted adapter against those of base + original."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lrft.adapters.peft_import import placed, read_any
from lrft.adapters.storage import load_saved
from lrft.errors import CheckFailed
from lrft.loading.saved import load_as_trained, load_plain
from lrft.runs.locate import trusts_remote_code
from lrft.runs.probe import probe
from lrft.verification.merge import Difference, compare, logits


def verify_adapter(converted: Path, adapter: Path, *, base_folder: Path, tolerance: float) -> Difference:
    """Compare on the probe of the adapter's run.

    tolerance   of the mean logit difference, relative to the mean change that the original makes to the base's logits
    Raises CheckFailed above it.
    """
    rows, trusted = probe(adapter, base_folder), trusts_remote_code(adapter)
    original, other = read_any(adapter), read_any(converted)
    model = load_as_trained(original, base_folder, trust_remote_code=trusted, widen=True)
    attached = load_saved(model, placed(original, model))
    expected = logits(model, rows)
    with attached.disabled():
        untouched = logits(model, rows)
    attached.detach()
    load_saved(model, placed(other, model))
    found = compare(logits(model, rows), expected, untouched, tolerance=tolerance, dtype="float32")
    refuse_far(found, tolerance, converted)
    return replace(found, tolerance=tolerance)


def verify_extracted(
    converted: Path, base: Path, tuned: Path, *, tolerance: float, trust_remote_code: bool = False
) -> Difference:
    """The same for the difference of two models: base + converted against the tuned one, on neutral sentences."""
    rows = probe(converted, base)
    expected = logits(load_plain(tuned, trust_remote_code=trust_remote_code), rows)
    model = load_plain(base, trust_remote_code=trust_remote_code)
    untouched = logits(model, rows)
    load_saved(model, read_any(converted))
    found = compare(logits(model, rows), expected, untouched, tolerance=tolerance, dtype="float32")
    refuse_far(found, tolerance, converted)
    return replace(found, tolerance=tolerance)


def refuse_far(found: Difference, tolerance: float, converted: Path) -> None:
    if not found.mean <= tolerance * found.mean_changed:
        share = found.mean / found.mean_changed if found.mean_changed else float("inf")
        raise CheckFailed(
            f"the converted adapter's logits differ from the original's by {share:.1%} of what it changes "
            f"(tolerance {tolerance:.0%}; means of absolute differences {found.mean:.1e} and {found.mean_changed:.1e})",
            f"The folder was kept for inspection: {converted}. Use a higher rank or energy, or the merged model.",
        )
