"""The commands of the Dockerfile without a container: `python -m cluster.docker.rehearse [--install]`, in a checkout.

The RUN lines of the last stage run in a copy of the tracked files, with a fresh virtual environment first on PATH.
Without `--install`, pip resolves everything under the constraints and installs nothing. With it, some gigabytes are
installed, and what a node needs is imported.
"""

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blip3o import log, settings
from cluster.images import run_lines

logger = logging.getLogger("cluster.docker.rehearse")  # also when run as __main__

ROOT = Path(__file__).parents[2]
IMPORTS = "import blip3o, cluster.notice, jobs.cli, peft, ray, serve.app, torch"


def commands(dockerfile: str, *, install: bool) -> list[str]:
    """The RUN lines of a Dockerfile's last stage, and an import; without `install`, pip only resolves."""
    lines = run_lines(dockerfile[dockerfile.rindex("\nFROM ") :])
    if install:
        return [*lines, f"cd /tmp && python -c '{IMPORTS}'"]
    return [line.replace("pip install ", "pip install --dry-run --quiet ") for line in lines]


def copy_tracked(target: Path) -> None:
    """Copies what belongs to the checkout, as COPY does. Raises `CalledProcessError` where there is no git checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, encoding="utf-8")
    for name in filter(None, listed.stdout.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)


def rehearse(dockerfile: str, *, install: bool) -> bool:
    """Runs the commands, and says how long each took; False at the first that fails."""
    with tempfile.TemporaryDirectory(prefix="blip3o-image-") as folder:
        work, environment = Path(folder, "blip3o"), Path(folder, "venv")
        copy_tracked(work)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        path = f"{environment}/bin:{settings.get('PATH', '/usr/bin:/bin')}"
        variables = settings.child_environment({"PATH": path, "PYTHONPATH": "", "VIRTUAL_ENV": str(environment)})
        for command in commands(dockerfile, install=install):
            began = time.monotonic()
            code = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=work, env=variables).returncode
            logger.info("%.0f s, exit code %d: %s", time.monotonic() - began, code, command)
            if code:
                return False
    return True


def main(arguments: list[str]) -> int:
    """Rehearses the shipped Dockerfile; returns 1 if a command fails."""
    parser = argparse.ArgumentParser(prog="python -m cluster.docker.rehearse", description=__doc__)
    parser.add_argument("--install", action="store_true", help="install, instead of resolving only")
    chosen = parser.parse_args(arguments)
    log.configure()
    text = Path(__file__).with_name("Dockerfile").read_text(encoding="utf-8")
    return 0 if rehearse(text, install=chosen.install) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
