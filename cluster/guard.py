"""Becomes a command that the kernel ends when the process that started it dies: `python guard.py PARENT COMMAND…`.

Run as a file by `cluster.process`, without the project on its path: standard library only, and nothing is imported from
here. Only Linux has the parent-death signal; elsewhere the command runs unguarded until `ManagedProcess.stop`.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _bind_to_parent(parent: int) -> None:
    """Requests SIGTERM at the parent's death. The parent may have died before this call, so check again."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(f"process {parent} died before {sys.argv[2]} was started")


if __name__ == "__main__":
    if sys.platform == "linux":
        _bind_to_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
