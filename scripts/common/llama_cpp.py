"""Greedy answers of llama.cpp itself, as the wheel xllamacpp carries it: pip install xllamacpp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

GREEDY = {"temperature": 0, "top_k": 1, "cache_prompt": False}


def server_of(gguf: Path, lora: Path | None = None) -> Any:
    """llama.cpp's server over one file, in this process and without a port that others reach. lora: as of --lora."""
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path = str(gguf)
    given.n_ctx, given.n_parallel, given.warmup, given.verbosity, given.use_jinja = 512, 1, False, -1, True
    # A cache in half precision would decide between tokens that are almost as likely.
    given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
    if lora is not None:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = str(lora), 1.0
        given.lora_adapters = [adapter]
    return xllamacpp.Server(given)


def answers(gguf: Path, prompts: Sequence[Sequence[int]], most: int, lora: Path | None = None) -> list[str]:
    """The greedy continuation of each prompt of token ids, of at most `most` tokens, without its end token."""
    server, asked = server_of(gguf, lora), {**GREEDY, "max_tokens": most}
    replies = [server.handle_completions({**asked, "prompt": [int(token) for token in ids]}) for ids in prompts]
    return [str(reply["choices"][0]["text"]) for reply in replies]


def chat_answer(gguf: Path, turns: Sequence[dict[str, str]], most: int) -> str:
    """The greedy answer to a conversation, as the chat template in the file puts it."""
    asked = {**GREEDY, "max_tokens": most, "messages": [*turns]}
    return str(server_of(gguf).handle_chat_completions(asked)["choices"][0]["message"]["content"])
