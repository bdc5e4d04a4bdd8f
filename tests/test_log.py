"""What an entry point says reaches the terminal, whichever way it was started."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from blip3o import log

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
    assert [line[9:] for line in done.stderr.splitlines()] == ["by __main__", "by jobs.index"]


DIVERTED = """
import logging, sys, threading, warnings
import ray
from pathlib import Path
from blip3o import log
log.configure()
with log.session():
    log.divert(Path(sys.argv[1]))
    logging.getLogger("jobs.train").info("step 1")
    for name in ("elsewhere", "ray.data"):
        logging.getLogger(name).warning("%s warns", name)
        logging.getLogger(name).error("%s fails", name)
    warnings.warn("deprecated")
    print("printed by a library", file=sys.stderr)
    listener = threading.Thread(target=print, args=["printed by Ray"], name=log.RAYS_THREAD)
    listener.start()
    listener.join()
    print("a result", flush=True)
    log.console().print("[bold]said[/] by us", markup=True)
print("after", file=sys.stderr)
logging.getLogger("elsewhere").warning("warns again")
1 / 0
"""


def test_what_libraries_say_goes_to_the_file_and_errors_and_our_words_to_the_terminal(tmp_path):
    """Ray's logger keeps the stderr of its import, and does not propagate."""
    file = tmp_path / "new" / "demo.log"
    environment = {"PYTHONPATH": ":".join(sys.path), "FORCE_COLOR": "", "NO_COLOR": "1"}
    command = [sys.executable, "-c", DIVERTED, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    shown, logged = done.stderr, file.read_text()
    for words in ("step 1\n", "elsewhere fails", "ray.data fails", "said by us\n", "after\n", "elsewhere: warns again"):
        assert shown.count(words) == 1, shown
    for words in ("elsewhere warns", "ray.data warns", "deprecated", "printed by a library", "printed by Ray"):
        assert words in logged and words not in shown
    assert "jobs.train: step 1" in logged and "ray.data fails" in logged
    assert "ZeroDivisionError" in shown and "\x1b" not in shown
    assert done.stdout == "a result\n"
    assert (
        f'name="{log.RAYS_THREAD}"'
        in Path(find_spec("ray").origin).with_name("_private").joinpath("worker.py").read_text()
    )


def test_outside_an_entry_point_stderr_stays(tmp_path, capsys):
    log.divert(tmp_path / "log")
    assert log.diverted() is None and not (tmp_path / "log").exists()
