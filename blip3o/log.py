"""Logging. Library code uses `logger = logging.getLogger(__name__)`; entry points call `configure` once."""

import io
import logging
import sys


def configure(level: str = "INFO") -> None:
    """Logs to stderr as `HH:MM:SS LEVEL name: message`; other libraries log from WARNING on.

    Also makes stdout and stderr escape characters that their encoding cannot represent (a reply in another script, a
    file name that is not UTF-8).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    # `python -m jobs.index` runs its module under the name `__main__`.
    for name in ("__main__", "blip3o", "jobs", "serve", "cluster"):
        logging.getLogger(name).setLevel(level)
