"""What a process of the fork server has imported when it begins."""

from __future__ import annotations

import gc
from pathlib import Path

import datasets  # noqa: F401
import pictures
import torch  # noqa: F401

import lrft.cli.main
import lrft.cli.train
import lrft.planning.dry_run
import lrft.training.run  # noqa: F401
from lrft.model.load import importing
from lrft.report import markdown

with importing():
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

markdown.loss_picture = pictures.none
gc.freeze()
# A fork has one thread only: a lock that another one holds at that moment would stay locked for ever.
if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
    raise RuntimeError(f"a process with {threads} threads cannot be forked safely")
