"""Where things are and who runs them: the work folder, both environments, the models."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from performance import machine, processes
from performance.processes import ROOT


@dataclass(frozen=True)
class Place:
    """What every mode works with. Files are written below `work`, which git does not see."""

    threads: int
    work: Path = ROOT / "runs" / "bench"
    python: Path = Path(sys.executable)
    """lrft's environment: the one that runs this"""
    peers: Path = Path(os.environ.get("PEERS") or ROOT / ".venv-bench" / "bin" / "python")

    def interpreter(self, peer: bool) -> Path:
        """Raises FileNotFoundError when the peers are not installed."""
        if peer and not self.peers.exists():
            raise FileNotFoundError(f"{self.peers}: the peers are not installed; scripts/bench does it")
        return self.peers if peer else self.python

    def model(self, name: str) -> Path:
        """The folder of a model, made at its first use. Raises RuntimeError when it cannot be made."""
        folder = self.work / "models" / name
        if not (folder / "origin.json").exists():
            print(f"making the model {name}", file=sys.stderr)
            made = processes.run([self.python, "-m", "performance.models", name, folder], threads=self.threads)
            if made.code:
                raise RuntimeError(f"{name}: {made.reason()}")
        return folder

    def origin(self, name: str) -> dict[str, Any]:
        """{"weights": where they come from, "config": transformers' config.json} of a model."""
        return json.loads((self.model(name) / "origin.json").read_text())

    def facts(self) -> dict[str, Any]:
        """Machine, versions and threads, for a section of the page."""
        return {
            "machine": machine.facts(),
            "threads": self.threads,
            "lrft": machine.commit(ROOT),
            "sources": machine.sources(ROOT),
            "versions": machine.versions(self.python),
            "peers": machine.versions(self.peers),
        }


def refuse_other_torch(facts: dict[str, Any]) -> None:
    """Raises ValueError unless both environments have the same torch and transformers: else they are what differs."""
    ours, theirs = facts["versions"], facts["peers"]
    for name in ("torch", "transformers"):
        if theirs and ours.get(name) != theirs.get(name):
            raise ValueError(f"{name} is {ours.get(name)} for lrft and {theirs.get(name)} for its peers")
