"""One contestant in a process of its own: python -m performance.worker JOB.json"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from performance.job import Job
from performance.recorder import Recorder


def main() -> None:
    job = Job.read(Path(sys.argv[1]))
    recorder = Recorder()
    importlib.import_module(f"performance.{job.runner}").run(job, recorder)
    Path(job.result).write_text(json.dumps(recorder.result()))


if __name__ == "__main__":
    main()
