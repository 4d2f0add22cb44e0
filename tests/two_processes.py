"""A recipe trained by several processes on this machine, to be compared with the same run in one process."""

from __future__ import annotations

from pathlib import Path

import runs
from runs import Place

# 9 rows in steps of 4: 4, 4 and 1, so that the last step of an epoch has fewer rows than there are processes.
KEYS = (
    "training.global_batch_size=4",
    "training.epochs=2",
    "training.micro_batch_size=1",
    "training.optimizer={adamw: {eps: 1e-3}}",  # else Adam blows up the rounding of gradients that are nearly zero
    "evaluation.every=2",
    "evaluation.at_start=true",
    "evaluation.samples=1",
    "evaluation.max_new_tokens=2",
    "checkpoint.every=2",
    "checkpoint.keep=9",
)


WORKER = """
import json, os, sys, warnings
warnings.simplefilter("error")
# DeepSpeed 0.19 imports what torch 2.13 has given up.
warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
sys.path[:0] = sys.argv[1].split(":")
from lrft.training import validation
from pathlib import Path
from lrft import recipe
from lrft.distributed import processes
from lrft.training.engine import Engine
from lrft.training.run import train
from lrft.training.state import Options
from lrft.utils import hardware

root, out, resume, penalty, short, *keys = sys.argv[2:]
rank = os.environ["RANK"]
dealt = Engine.passes
def noted(*arguments):
    found = dealt(*arguments)
    with open(f"{root}/{out}-rows-{rank}", "a") as seen:
        print(json.dumps(found), file=seen)
    return found
Engine.passes = noted
answer_rows = validation.answer_rows
def counted(model, tokenizer, rows, **named):
    with open(f"{root}/{out}-answers-{rank}", "a") as seen:
        print(len(rows), file=seen)
    return answer_rows(model, tokenizer, rows, **named)
validation.answer_rows = counted
if penalty:
    import pytest, runs
    runs.add_parts(pytest.MonkeyPatch(), runs.Penalty(float(penalty)))
if short == rank:
    hardware.available = lambda: 1
loaded = recipe.load(Path(root) / "recipe.yaml", (f"output_dir={root}/{out}", *keys))
train(loaded, Options(quiet=True, resume=resume or None))
processes.leave()
"""


def launch(
    place: Place,
    out: str,
    *keys: str,
    resume: str = "",
    penalty: str = "",
    short: str = "",
    world: int = 2,
    each: int = 1,
) -> Path:
    """Run in `world` processes that talk through gloo, as a launcher starts them, `each` of them on a node.

    short: the process that has memory for a single row.
    """
    arguments = (str(place.root), out, resume, penalty, short, *KEYS, *keys)
    runs.side_by_side(WORKER, *arguments, world=world, each=each)
    return place.root / out
