"""`python -m real_benchmark.peer_job FOLDER RECIPE KEYS`: what other trainers need to make the same run.

job.json has tokens and labels of each step's rows in lrft's order, and of the test rows; start.safetensors has the
adapter's first values.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lrft import recipe as recipes
from lrft.loading.from_recipe import find_base
from lrft.training.setup import set_up
from lrft.training.state import Options
from lrft.utils import files
from real_benchmark import judge, peers
from real_benchmark.design import ROWS_A_STEP, WORK

IGNORED = -100


def example(rows: Any, at: int) -> dict[str, list[int]]:
    """Tokens and labels of a row, which is one sequence."""
    ((tokens, trained),) = rows.sequences(at)
    labels = [int(token) if counts else IGNORED for token, counts in zip(tokens, trained, strict=True)]
    return {"input_ids": [int(token) for token in tokens], "labels": labels}


def main(arguments: list[str]) -> int:
    folder, recipe_file, *keys = arguments
    recipe = recipes.load(Path(recipe_file), keys)
    session = set_up(recipe, Options(quiet=True))
    steps = recipe.training.max_steps or 0
    train = session.inputs.train
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    save_file(session.adapted.attached.state_dict(), out / "start.safetensors")
    test = judge.rows_of(session.inputs.tokenizer, WORK / "data" / f"{peers.TASK}-test.jsonl")
    job = {
        "model": str(find_base(recipe)),
        "rank": recipe.adapter.rank,
        "rate": recipe.training.learning_rate,
        "seed": recipe.training.seed,
        "batch": ROWS_A_STEP,
        "train": [example(train, int(at)) for step in range(steps) for at in session.inputs.batches.rows(step)],
        "test": [example(test, at) for at in range(len(test))],
    }
    files.write_json(out / "job.json", job)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
