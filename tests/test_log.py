"""What an entry point says reaches the terminal, whichever way it was started."""

import subprocess
import sys

SAID = """
import logging
from blip3o import log
log.configure()
for name in (__name__, "jobs.index", "elsewhere"):
    logging.getLogger(name).info("by %s", name)
"""


def test_what_a_terminal_cannot_show_is_escaped():
    said = "from blip3o import log; log.configure(); print('\\udcff \\u4e00')"
    command = [sys.executable, "-X", "utf8=0", "-c", said]
    environment = {"PYTHONIOENCODING": "latin-1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "\\udcff \\u4e00\n"


def test_a_module_that_is_run_itself_speaks_as_one_that_is_imported():
    """`python -m jobs.index` runs its module under the name `__main__`."""
    done = subprocess.run([sys.executable, "-c", SAID], capture_output=True, text=True, check=True, timeout=60)
    assert [line.rpartition(": ")[2] for line in done.stderr.splitlines()] == ["by __main__", "by jobs.index"]
