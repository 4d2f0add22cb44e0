"""`python -m real_benchmark.judge RUN|MODEL TASK`: figures of the test rows and of the general text, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lrft import data
from lrft.errors import LrftError, exit_code
from lrft.evaluation.generate import answer_rows, pad_token
from lrft.evaluation.loss import loss_of
from lrft.loading.saved import Target, answering, load_target
from lrft.model.weights import cache_dir
from lrft.recipe import DataEntry, DataSection
from real_benchmark.design import WORK
from real_benchmark.rows.all import TASKS

GENERAL = Path(__file__).with_name("general.txt")
LONGEST, ROWS_AT_ONCE, ANSWERS_AT_ONCE = 96, 8, 32


def rows_of(tokenizer: Any, path: Path) -> data.Rows:
    """A text is split into pieces of LONGEST tokens; of other rows none is longer."""
    section = DataSection(train=(DataEntry(path=str(path)),), max_length=LONGEST, too_long="split")
    if path.suffix != ".txt":
        section = section.model_copy(update={"too_long": "error"})
    rows, _ = data.prepare_file(
        path,
        section,
        tokenizer,
        seed=0,
        limit=None,
        where=lambda key: "default",
        cache=cache_dir(),
    )
    return rows


def loss(found: Target, rows: data.Rows) -> float:
    losses, layout = answering(found.model, rows)
    return float(loss_of(losses, rows, micro=ROWS_AT_ONCE, pad_id=pad_token(found.tokenizer), form=layout.form)["loss"])


def judged(target: str, task: str) -> dict[str, Any]:
    """{"loss", "figure", "general"}: of the test rows, of greedy answers to them, of the general text."""
    found, asked = load_target(target, None, False), TASKS[task]
    rows = rows_of(found.tokenizer, WORK / "data" / f"{task}-test.jsonl")
    answers = answer_rows(found.model, found.tokenizer, rows, max_new_tokens=asked.most, batch_size=ANSWERS_AT_ONCE)
    return {
        "loss": loss(found, rows),
        "figure": asked.score([(one["prompt"], one["expected"], one["answer"]) for one in answers]),
        "general": loss(found, rows_of(found.tokenizer, GENERAL)),
        "samples": [one["answer"] for one in answers[:3]],
    }


def main(arguments: list[str]) -> int:
    try:
        print(json.dumps(judged(*arguments)))
    except LrftError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
