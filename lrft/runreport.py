"""report.md and loss.png of a run folder, from its run.json and metrics.jsonl; and the environment."""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lrft import __version__
from lrft.errors import CheckFailed
from lrft.figures import loss_picture
from lrft.files import read_json, write_bytes, write_text
from lrft.metrics import read_metrics
from lrft.text import decimals, visible

SECTIONS = (
    "result",
    "checks",
    "warnings",
    "model",
    "adapter",
    "data",
    "training",
)
LIST_SHOWN = 20  # items of one list
SAMPLE_SHOWN = 600  # characters of one text of a sample
PACKAGES = (
    *("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers", "huggingface-hub"),
    *("numpy", "pydantic", "peft", "gguf"),
)


def write_report(run_dir: Path) -> Path:
    """Writes report.md and loss.png into a run folder; returns the path of report.md.

    Raises CheckFailed when run.json is missing or broken, LrftError when the disk is full.
    """
    run = read_json(run_dir / "run.json")
    if not isinstance(run, dict):
        raise CheckFailed(f"{run_dir / 'run.json'} is no record of a run: it holds no JSON object")
    records, unreadable = read_metrics(run_dir / "metrics.jsonl")
    write_bytes(run_dir / "loss.png", loss_picture(records))
    write_text(run_dir / "report.md", _markdown(run, records, unreadable))
    return run_dir / "report.md"


def escape(text: str) -> str:
    """`text` as the same characters in Markdown, also within a table: no markup, no HTML, no line end."""
    lines = [visible(line) for line in text.splitlines()]
    plain = "<br>".join(re.sub(r"([\\`*_{}\[\]|~#$!])", r"\\\1", _entities(line)) for line in lines)
    return re.sub(r"^(\d*)([-+.)])(?=\s)", r"\1\\\2", plain.strip())  # would start a list


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _markdown(run: Mapping[str, Any], records: Sequence[dict[str, Any]], unreadable: int) -> str:
    names = [*(name for name in SECTIONS if name in run), *(n for n in run if n not in (*SECTIONS, "title"))]
    blocks = [f"# {escape(str(run.get('title', 'Run')))}", "![Losses and learning rate](loss.png)"]
    for name in names:
        body = list(_section(run[name]))
        blocks += [f"## {escape(name[:1].upper() + name[1:])}", *body] if body else []
    evals = [record for record in records if record.get("kind") == "eval"]
    blocks += _pace([record for record in records if record.get("kind") == "step"], unreadable)
    blocks += _evaluations(evals)
    return "\n\n".join(blocks) + "\n"


def _section(value: Any) -> Iterator[str]:
    """A dict as a table of names and values, each list of dicts in it as another table; a list as points."""
    if isinstance(value, Mapping):
        leaves = list(_leaves(value, ""))
        single = [[escape(name), _cell(item)] for name, item in leaves if not _is_table(item)]
        if single:
            yield _table(["", ""], single)
        for name, item in leaves:
            if _is_table(item):
                columns = list(dict.fromkeys(key for row in item for key in row))
                yield f"**{escape(name)}**"
                yield _table(columns, [[_cell(row.get(key, "")) for key in columns] for row in item])
    elif isinstance(value, list):
        if value:
            yield "\n".join(f"- {_cell(item)}" for item in value)
    else:
        yield _cell(value)


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{name}: ")
        else:
            yield name, item


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(key))}: {_cell(item)}" for key, item in value.items())
    if isinstance(value, list):
        more = [f"and {len(value) - LIST_SHOWN:,} more"] if len(value) > LIST_SHOWN else []
        return ", ".join([*(_cell(item) for item in value[:LIST_SHOWN]), *more])
    return escape(str(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`rows` hold Markdown already; `head` is plain text."""
    lines = [[escape(name) for name in head], ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pace(steps: Sequence[dict[str, Any]], unreadable: int) -> list[str]:
    def values(key: str) -> list[float]:
        return [record[key] for record in steps if record.get(key) is not None]

    speeds, memory = values("tokens_per_second"), values("memory_gb")
    rows = [["Recorded steps", f"{len(steps):,}"]]
    rows += [["Tokens", f"{steps[-1]['tokens']:,}"]] if steps and "tokens" in steps[-1] else []
    rows += [["Tokens per second, median", f"{statistics.median(speeds):,.0f}"]] if speeds else []
    rows += [["Memory, largest", f"{max(memory):.2f} GB"]] if memory else []
    bad = [f"{record['step']:,}" for record in steps if record.get("non_finite")]
    rows += [["Steps with values that are not finite", _cell(bad)]] if bad else []
    rows += [["Unreadable lines in metrics.jsonl", str(unreadable)]] if unreadable else []
    return ["## Steps", _table(["", ""], rows)]


def _evaluations(evals: Sequence[dict[str, Any]]) -> list[str]:
    if not evals:
        return []
    best = next((record for record in reversed(evals) if record.get("best")), None)
    rows = [[f"{r['step']:,}", *_scores(r), "best" if r is best else ""] for r in evals]
    blocks = ["## Evaluations", _table(["step", "loss", "perplexity", ""], rows)]
    sampled = [record for record in evals if record.get("samples")]
    if sampled:
        end = next((record for record in sampled[1:] if record is best), sampled[-1])
        blocks.append("## Samples")
        for record in [sampled[0], end] if end is not sampled[0] else [end]:
            blocks += _samples(record, " (best)" if record is best else "")
    return blocks


def _samples(record: Mapping[str, Any], remark: str) -> list[str]:
    columns = ("prompt", "expected", "answer")
    rows = [[_sample(sample.get(column)) for column in columns] for sample in record["samples"]]
    return [f"At step {record['step']:,}, loss {_scores(record)[0]}{remark}:", _table(columns, rows)]


def _scores(record: Mapping[str, Any]) -> list[str]:
    loss, perplexity = record.get("loss"), record.get("perplexity")
    return [
        "not finite" if loss is None else decimals(loss, 4),
        "–" if perplexity is None else decimals(perplexity, 2),
    ]


def _sample(text: str | None) -> str:
    if text is None:
        return "–"
    if not text.strip():
        return "*(empty)*"
    cut = f" … *({len(text):,} characters)*" if len(text) > SAMPLE_SHOWN else ""
    return escape(text[:SAMPLE_SHOWN]) + cut


def environment() -> dict[str, Any]:
    """Versions and machine, for the record of a run: nothing that names a person, a host or a folder.

    Torch's threads and devices are told only when torch is loaded already: this imports nothing heavy.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"lrft": __version__, **{name: _version(name) for name in PACKAGES}},
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        **({"torch": _torch()} if "torch" in sys.modules else {}),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _torch() -> dict[str, Any]:
    import torch

    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    devices = [torch.cuda.get_device_properties(index) for index in cuda]
    gpus = [{"name": device.name, "memory_gb": round(device.total_memory / 1e9, 1)} for device in devices]
    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "devices": gpus,
    }
