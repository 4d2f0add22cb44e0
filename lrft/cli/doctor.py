"""`lrft doctor`: what is installed, whether it fits, and what a run would use."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import typer

from lrft.cli.answer import answering
from lrft.cli.arguments import AsJson, loading
from lrft.utils.text import Row, byte_size, command


def doctor(as_json: AsJson = False) -> None:
    """Look at the installation: versions, devices, extras, caches, and packages that do not fit each other.

    Exit code 0: nothing is wrong. 1: something is, and the last lines say what to do.

    Example: lrft doctor --json
    """
    with loading():
        from lrft.distributed import compile_lock
        from lrft.installation import machine, packages
        from lrft.version import built_from

        used = machine.used()
    versions = {name: packages.version(name) for name in packages.LOOKED_AT}
    facts: dict[str, Any] = {
        "lrft": built_from(),
        "python": platform.python_version(),
        "packages": {name: found for name, found in versions.items() if found},
        "extras": packages.extras(),
        "used": used,
        "folders": machine.folders(),
        "hub_token": machine.has_token(),
    }
    facts["problems"] = problems(
        facts, [need.sentence() for need in packages.pairs()], compile_lock.left_behind(compile_lock.folder())
    )
    with answering(as_json, facts) as reporter:
        reporter.table(rows(facts))
    if facts["problems"]:
        raise typer.Exit(1)


def problems(facts: dict[str, Any], unfit: list[str], locks: list[Path]) -> list[str]:
    """What is wrong, each with what to do."""
    from lrft.installation.machine import writable

    said = [f"{sentence}. Install a version that fits both: pip install -U lrft" for sentence in unfit]
    said += [
        f"an interrupted compilation left a lock: {command('rm', path)}, when nothing is compiling" for path in locks
    ]
    said += [
        f"{folder['path']} cannot be written to: name another folder by {name}"
        for name, folder in facts["folders"].items()
        if not writable(Path(folder["path"]))
    ]
    return said


def rows(facts: dict[str, Any]) -> list[Row]:
    used = facts["used"]
    there = [name for name, complete in facts["extras"].items() if complete]
    missing = [name for name, complete in facts["extras"].items() if not complete]
    devices = [
        gpu if isinstance(gpu, str) else f"{gpu['name']}, {byte_size(gpu['memory_bytes'])}" for gpu in used["devices"]
    ]
    free = (
        f"{folder['path']}" + (f", {byte_size(folder['free_bytes'])} free" if folder["free_bytes"] is not None else "")
        for folder in facts["folders"].values()
    )
    found: list[Row] = [
        ("lrft", f"{facts['lrft']}   Python {facts['python']}"),
        ("packages", "   ".join(f"{name} {version}" for name, version in facts["packages"].items())),
        ("extras", f"installed: {', '.join(there) or 'none'}   not installed: {', '.join(missing) or 'none'}"),
        ("devices", devices),
        (
            "auto",
            f"precision {used['precision']}   frozen weights {used['frozen_weights']}   {used['threads']} threads",
        ),
        ("attention", ", ".join(used["attention"])),
        *([("threads", used["threads_note"])] if used["threads_note"] else []),
        ("caches", list(free)),
        ("hub", "a token is set" if facts["hub_token"] else "no token: public models and data only"),
        ("problems", facts["problems"] or "none"),
    ]
    return found
