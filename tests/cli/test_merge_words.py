"""What `lrft merge` prints of what it did."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lrft.cli.merge import tell
from lrft.export.merge import MergeResult


def result(**changes: float) -> MergeResult:
    found = {"update_norm": 1.0, "lost_norm": 0.12, "worst_site": "q_proj", "worst_share": 0.2, **changes}
    return MergeResult(Path("my run/merged"), Path("base"), 1, "bfloat16", **found)


def test_the_next_command_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Path("my run/merged"), result(), None)
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next"))
    assert shlex.split(said)[1:] == ["lrft", "eval", "my run/merged", "--data", "test.jsonl"]


@pytest.mark.parametrize(("lost", "warned"), [(0.12, True), (0.01, False)])
def test_a_large_loss_to_rounding_is_a_warning(lost: float, warned: bool, capsys: pytest.CaptureFixture[str]) -> None:
    tell(Path("merged"), result(lost_norm=lost), None)
    said = " ".join(capsys.readouterr().out.split())
    assert "1 module " in said
    assert ("12% of the update was lost to bfloat16 rounding; merge with --dtype float32 to keep it" in said) == warned
