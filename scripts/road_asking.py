"""Asks one question of a server, with the openai client, or of a .gguf file, with llama.cpp; prints the answer.

python scripts/road_asking.py openai ADDRESS MODEL SYSTEM QUESTION
python scripts/road_asking.py llama.cpp FILE SYSTEM QUESTION
"""

from __future__ import annotations

import sys
from pathlib import Path

MOST = 60  # tokens of an answer


def openai_says(address: str, model: str, turns: list[dict[str, str]]) -> str:
    import openai

    client = openai.OpenAI(base_url=address, api_key="none")
    made = client.chat.completions.create(model=model, messages=turns, temperature=0, max_tokens=MOST)
    return str(made.choices[0].message.content)


def llama_cpp_says(file: str, turns: list[dict[str, str]]) -> str:
    """As the chat template that is in the file puts the turns."""
    from common.llama_cpp import chat_answer

    return chat_answer(Path(file), turns, MOST)


if __name__ == "__main__":
    kind, *where, system, question = sys.argv[1:]
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    print({"openai": openai_says, "llama.cpp": llama_cpp_says}[kind](*where, turns))
