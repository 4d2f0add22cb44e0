"""`lrft merge`: write the merged folder, compare it with the adapter, print what it lost."""

from __future__ import annotations

import json
from pathlib import Path

from lrft.errors import UsageError
from lrft.export.merge import merge_adapter
from lrft.runs.locate import adapter_of, run_of, trusts_remote_code
from lrft.tracking.console import Reporter
from lrft.utils.text import Row
from lrft.verification.merge import Quantized, verify_merge

LARGEST_ROUNDING_LOSS = 0.1  # share of the update lost to rounding at a merge that is worth a warning


def merge(
    source: Path,
    out: Path | None,
    *,
    dtype: str | None,
    base_model: str | None,
    verify: bool,
    tolerance: float | None,
    accept_other_base: bool,
    as_json: bool,
    into: str = "original",
) -> None:
    """`lrft merge`."""
    adapter = adapter_of(source)
    if out is None:
        run = run_of(adapter)
        if run is None:
            raise UsageError("say where the merged model goes: -o FOLDER")
        out = run / "merged"
    result = merge_adapter(
        adapter,
        out,
        base_model=base_model,
        dtype=dtype,
        accept_other_base=accept_other_base,
        into=into,
        trust_remote_code=trusts_remote_code(adapter),
    )
    difference = None
    if verify:
        difference = verify_merge(out, adapter, base_folder=result.base, tolerance=tolerance, into=into)
    if as_json:
        facts = {
            "out": str(out),
            **result.to_dict(),
            "verified": difference.to_dict() if difference else None,
        }
        print(json.dumps(facts, indent=1))
        return
    rows: list[Row] = [
        ("merged", [str(out), f"{result.sites} modules"]),
        (
            "rounding",
            [
                f"{result.lost_share:.2%} of the update lost",
                f"worst {result.worst_share:.2%} in {result.worst_site}",
            ],
        ),
    ]
    if difference:
        rows.append(
            (
                "checked",
                [
                    f"merged against adapter on {difference.rows} rows: largest logit difference "
                    f"{difference.largest:.2g} (largest logit {difference.largest_logit:.3g})",
                    f"same first token {difference.same_first:.2%}",
                ],
            )
        )
    if difference and difference.quantized:
        rows.append(("quantised", quantized_lines(difference.quantized)))
    rows.append(("next", [f"lrft eval {out} --data test.jsonl"]))
    with Reporter(None) as reporter:
        reporter.table(rows)
        if result.lost_share > LARGEST_ROUNDING_LOSS:
            reporter.warn(f"rounding took {result.lost_share:.0%} of the update; --dtype float32 keeps it")


def quantized_lines(found: Quantized) -> list[str]:
    """How far apart the two bases are that an adapter can be merged into."""
    return [
        f"the adapter was trained on a base in {found.kind}, and is merged into the original one",
        f"mean logit difference: {found.mean:.2g} to the adapter where it was trained, {found.base:.2g} between the "
        f"two bases, {found.update:.2g} between what the adapter changes in each",
        "--into dequantized merges into the weights that were trained against",
    ]
