"""Asks a merged classifier with stock transformers alone.

python recipes/classification/ask.py FOLDER TEXT...
"""

from __future__ import annotations

import sys

from transformers import pipeline


def main(arguments: list[str]) -> None:
    folder, *texts = arguments
    classify = pipeline("text-classification", model=folder)
    for text, answer in zip(texts, classify(texts), strict=True):
        print(f"{answer['label']:<10} {answer['score']:.2f}  {text}")


if __name__ == "__main__":
    main(sys.argv[1:])
