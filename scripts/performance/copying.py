"""A copy that is on the disk when it ends: python -m performance.copying FROM TO"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
