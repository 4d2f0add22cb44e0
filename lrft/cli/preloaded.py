"""What a run needs, imported once for all runs of a comparison: see `lrft.compare.warm`."""

from __future__ import annotations

import gc

import lrft.cli.eval
import lrft.cli.merge
import lrft.cli.train
import lrft.compare.forgetting
import lrft.training.run  # noqa: F401
from lrft.model.load import importing

with importing():
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401

gc.freeze()  # shared with every fork for as long as nobody writes to it
