"""The table of docs/gpu.md, from what the pretended GPU says of every case:

python tests/fakecuda/pretended.py $(python -m gpu_day.table --cases) > said.jsonl
python -m gpu_day.table said.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cases import first_of_each_method

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
BEGIN, END = "<!-- table: written by gpu_day.table -->\n", "<!-- end -->\n"
WAYS = ("whole", "light", "full")
BLOCKS = 4
"""of a step's passes together: two of two"""
HEAD = """\
| case | passed | operations | a block | reads | when logged |
|---|---|---|---|---|---|
"""


def row(case: dict[str, Any]) -> str:
    passed = sum("error" not in case[way] for way in WAYS)
    step = case["whole"]
    if "error" in step:
        return f"| {case['case']} | {passed} of {len(WAYS)} | | | | |"
    operations = sum(step["plain"]["operations"].values())
    plain, logged = (sum(step[kind]["reads"].values()) for kind in ("plain", "logged"))
    return (
        f"| {case['case']} | {passed} of {len(WAYS)} | {operations:,} | {operations // BLOCKS:,} | {plain} | {logged} |"
    )


def main() -> None:
    if sys.argv[1] == "--cases":
        print(*first_of_each_method())
        return
    cases = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table = HEAD + "".join(row(case) + "\n" for case in cases)
    PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
