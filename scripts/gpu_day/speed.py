"""An 8B model with a LoRA on all linear layers: time, share of the matrix rate (MFU) and memory by mix of rows.

lrft in one attention call and row by row, PEFT over the same rows laid end to end, and PEFT under transformers'
Trainer, which pads. Random weights: what is measured does not depend on them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from performance.gpu import matmul_rate, step_flops
from performance.models import LLAMA_8B
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import lrft
from gpu_day.day import Day
from lrft.data.collate import ends_mask
from lrft.model import varlen_attention
from lrft.model.packed_attention import use_rowwise
from lrft.objectives.sft import TokenLoss
from lrft.objectives.to_device import to_device

RANK = 16
# rows of a pass, tokens of each
MIXES = ((4, 200), (64, 30), (64, 120), (8, 1024), (4, 4096))
TINY_MIXES = ((2, 8), (4, 4))
TINY = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
TOP = 25


def run(day: Day) -> None:
    rate = matmul_rate() if day.on_gpu else None
    day.found["matrix rate, TFLOP/s"] = rate and rate / 1e12
    model = adapted(day, "lrft")
    day.part("lrft", 70, lambda end: measured(day, model, rate, end))
    with row_by_row():
        day.part("lrft, attention row by row", 40, lambda end: measured(day, model, rate, end))
    day.part("reads of a pass", 10, lambda end: waits(day, model))
    day.part(f"top {TOP}", 25, lambda end: top(day, model))
    del model
    model = adapted(day, "peft")
    day.part("peft, the same rows and loss", 50, lambda end: measured(day, model, rate, end))
    day.part("peft and Trainer", 50, lambda end: padded(day, model, rate))


def adapted(day: Day, by: str) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with day.device:
            model: Any = LlamaForCausalLM(TINY if day.dry else LLAMA_8B).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    use_rowwise(model)
    if by == "lrft":
        lrft.attach(model, {"method": "lora", "rank": RANK})
    else:
        from peft import LoraConfig, get_peft_model

        words = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, words).base_model.model
    return model.train()


def batch(day: Day, rows: int, tokens: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (1, rows * tokens), generator=torch.Generator().manual_seed(0))
    places = torch.arange(tokens).repeat(rows)[None]
    made = {"input_ids": ids, "position_ids": places, "labels": ids, "attention_mask": ends_mask([tokens] * rows)}
    return to_device(made, day.device)


def a_pass(day: Day, model: Any, given: Mapping[str, Tensor]) -> Callable[[], None]:
    loss = TokenLoss(model, direct=True)

    def act() -> None:
        with torch.autocast(day.device.type, torch.bfloat16):
            value = loss(given)
        value.backward()

    return act


def measured(day: Day, model: Any, rate: float | None, end: float) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for rows, tokens in TINY_MIXES if day.dry else MIXES:
        if time.monotonic() > end:
            said[f"{rows} x {tokens}"] = "no time was left"
            continue
        day.forget()
        try:
            seconds, host = timed(day, a_pass(day, model, batch(day, rows, tokens)), end)
        except torch.OutOfMemoryError as error:
            said[f"{rows} x {tokens}"] = str(error)[:200]
            continue
        said[f"{rows} x {tokens}"] = figures(day, model, rate, rows * tokens, seconds) | {"host ms": 1e3 * host}
    return said


def figures(day: Day, model: Any, rate: float | None, tokens: int, seconds: float) -> dict[str, Any]:
    share = rate and step_flops(model.config, tokens, tokens) / seconds / rate
    return {"ms": 1e3 * seconds, "tokens/s": tokens / seconds, "MFU": share, "peak GB": day.peak_gb()}


def timed(day: Day, act: Callable[[], None], end: float, times: int = 4) -> tuple[float, float]:
    """Least seconds of a pass, and those in which the machine was busy starting it, after two that warm up."""
    act()
    act()
    day.wait()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        host = time.perf_counter() - began
        day.wait()
        found.append((time.perf_counter() - began, host))
        if time.monotonic() > end:
            break
    return min(found)


@contextmanager
def row_by_row() -> Iterator[None]:
    """Inside, no device has the kernel for rows of many lengths."""
    works: Any = varlen_attention.works
    varlen_attention.works = lambda *asked: False  # type: ignore[assignment]
    try:
        yield
    finally:
        varlen_attention.works = works


def waits(day: Day, model: Any) -> Any:
    """Where the machine waits for the GPU in a pass, by torch's own account."""
    import warnings

    act = a_pass(day, model, batch(day, *(TINY_MIXES if day.dry else MIXES)[0]))
    if not day.on_gpu:
        act()
        return "needs a GPU"
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            act()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{one.filename.rpartition('/')[2]}:{one.lineno}" for one in said]


def top(day: Day, model: Any) -> dict[str, Any]:
    """{operation: [ms, calls]} of the longest ones in a pass."""
    from torch.profiler import ProfilerActivity, profile

    act = a_pass(day, model, batch(day, *(TINY_MIXES if day.dry else MIXES)[-3 if not day.dry else 0]))
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if day.on_gpu else [])]
    with profile(activities=kinds) as seen:
        act()
        day.wait()
    key = "self_device_time_total" if day.on_gpu else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, key))[:TOP]
    return {event.key[:70]: [getattr(event, key) / 1e3, event.count] for event in events}


def padded(day: Day, model: Any, rate: float | None) -> dict[str, Any]:
    """transformers' Trainer on rows of half to one and a half times the length, four steps of a mix."""
    rows, tokens = (TINY_MIXES if day.dry else MIXES)[-1 if day.dry else 2]
    lengths = torch.linspace(tokens // 2, tokens + tokens // 2, rows).long().tolist()
    data = [{"input_ids": [3] * n, "labels": [3] * n} for n in lengths] * 4
    longest = max(lengths)

    def collate(some: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        def filled(word: str, with_: int) -> Tensor:
            return torch.tensor([one[word] + [with_] * (longest - len(one[word])) for one in some])

        mask = torch.tensor([[1] * len(one["input_ids"]) + [0] * (longest - len(one["input_ids"])) for one in some])
        return {"input_ids": filled("input_ids", 0), "labels": filled("labels", -100), "attention_mask": mask}

    with tempfile.TemporaryDirectory(prefix="gpu-day-") as folder:
        words: dict[str, Any] = {"output_dir": folder, "per_device_train_batch_size": rows, "num_train_epochs": 1}
        words |= {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        how = TrainingArguments(**words, bf16=True, use_cpu=not day.on_gpu)
        trainer = Trainer(model=model, args=how, train_dataset=data, data_collator=collate)  # type: ignore[arg-type]
        trainer.train()  # warms up
        day.wait()
        day.forget()
        began = time.perf_counter()
        trainer.train()
        day.wait()
    return figures(day, model, rate, sum(lengths) * 4, time.perf_counter() - began) | {"steps": 4}
