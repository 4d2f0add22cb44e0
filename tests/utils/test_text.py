"""Numbers and commands in the words that people read."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from lrft.utils.text import amount, byte_size, command, count


@pytest.mark.parametrize(
    ("n", "words", "said"),
    [
        (0, ("row",), "0 rows"),
        (1, ("row",), "1 row"),
        (1234, ("row",), "1,234 rows"),
        (1, ("pass", "passes"), "1 pass"),
        (2, ("pass", "passes"), "2 passes"),
    ],
)
def test_a_number_agrees_with_its_noun(n: int, words: tuple[str, ...], said: str) -> None:
    assert count(n, *words) == said


def test_parameters_are_counted_in_full_below_a_million() -> None:
    assert [amount(0), amount(42_880), amount(999_999)] == ["0", "42,880", "999,999"]
    assert [amount(1_000_000), amount(1_235_814_400), amount(1_843_200, 3)] == ["1.0 M", "1,235.8 M", "1.843 M"]


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (0, "0 MB"),
        (300_000, "0.3 MB"),
        (9_960_000, "10.0 MB"),
        (45_200_000, "45 MB"),
        (999_400_000, "999 MB"),
        (999_600_000, "1.00 GB"),
        (1_254_000_000, "1.25 GB"),
        (2_500_000_000_000, "2,500.00 GB"),
    ],
)
def test_sizes_below_a_gigabyte_are_in_megabytes(n: int, said: str) -> None:
    assert byte_size(n) == said


@pytest.mark.parametrize("path", ["runs/first", "my runs/a b", "$HOME/`x`", "it's", "a;b", "*"])
def test_a_command_means_the_same_to_a_shell(path: str) -> None:
    assert shlex.split(command("lrft", "merge", Path(path))) == ["lrft", "merge", path]
    assert command("lrft", "merge", "runs/first") == "lrft merge runs/first"


@pytest.mark.parametrize("path", ["${PLACE}", "${PLACE}/a b", "runs/${PLACE}-$1 `x`", "it's/${PLACE}${PLACE}"])
def test_references_to_the_environment_are_left_to_the_shell(path: str) -> None:
    for expand, wanted in ((True, path.replace("${PLACE}", "my place")), (False, path)):
        line = command("printf", "%s", path, expand=expand)
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env={"PLACE": "my place"})
        assert done.stdout == wanted
