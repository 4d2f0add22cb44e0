"""PEFT's way of merging: python -m performance.peft_merge BASE ADAPTER OUT"""

from __future__ import annotations

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> None:
    base, adapter, out = sys.argv[1:]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(out)


if __name__ == "__main__":
    main()
