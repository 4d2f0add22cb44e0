"""`python -m lrft.compare.forgetting RUN FILE`: the loss on general text before and after training, as JSON.

Before is the same model with its adapters switched off: the same rows, the same numbers, one pass each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lrft import data
from lrft import recipe as recipes
from lrft.adapters.storage import load_adapter, read_adapter
from lrft.errors import LrftError, exit_code
from lrft.evaluation.generate import pad_token
from lrft.evaluation.loss import loss_of
from lrft.loading.base import base_of
from lrft.loading.saved import answering, load_as_trained
from lrft.model.load import load_tokenizer, position_limit
from lrft.model.weights import cache_dir
from lrft.recipe import DataEntry, DataSection
from lrft.runs.locate import adapter_of

ROWS_OF_A_PASS = 8


def before_and_after(run: Path, text: Path) -> dict[str, Any]:
    """{"before", "after": mean loss per token, "tokens"} of a run's best adapter. Raises LrftError.

    Text trains on all tokens and a long one is split; chat rows count their answers and are cut at the run's length.
    """
    recipe = recipes.load(run / "resolved.yaml")
    adapter = adapter_of(run)
    saved = read_adapter(adapter)
    trusted = recipe.model.trust_remote_code
    model = load_as_trained(saved, base_of(saved, None), trust_remote_code=trusted)
    attached = load_adapter(model, adapter)
    tokenizer = load_tokenizer(adapter, trusted)
    section = DataSection(
        train=(DataEntry(path=str(text)),),
        max_length=recipe.data.max_length,
        too_long="split" if text.suffix == ".txt" else "truncate",
    )
    rows, _ = data.prepare_file(
        text,
        section,
        tokenizer,
        seed=0,
        limit=position_limit(model.config),
        where=lambda key: "default",
        cache=cache_dir(),
    )
    losses, layout = answering(model, rows)

    def loss() -> float:
        pad = pad_token(tokenizer)
        return loss_of(losses, rows, micro=ROWS_OF_A_PASS, pad_id=pad, form=layout.form)["loss"]

    after = loss()
    with attached.disabled():
        before = loss()
    return {"before": before, "after": after, "tokens": sum(int(rows.trained(i).sum()) for i in range(len(rows)))}


def main(arguments: list[str]) -> int:
    try:
        print(json.dumps(before_and_after(Path(arguments[0]), Path(arguments[1]))))
    except LrftError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
