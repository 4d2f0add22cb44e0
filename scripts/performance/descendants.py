"""A command whose processor time counts that of everything it starts, orphans too: python descendants.py COMMAND ...

Who waits for this process is told the sum: what a command leaves behind becomes a child of this process (Linux).
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    command = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
    code = 1
    while True:
        try:
            ended, status = os.wait()
        except ChildProcessError:
            return code
        if ended == command:
            code = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
