"""The dependencies that `pyproject.toml` declares, a line each: `python dependencies.py pyproject.toml [EXTRA…]`.

Runs in the image before the project is there, so it needs nothing but Python.
"""

import sys
import tomllib
from pathlib import Path


def dependencies(pyproject: str, extras: list[str]) -> list[str]:
    """Requirements of the project and of some of its extras. Raises `KeyError` for an extra that it does not have."""
    project = tomllib.loads(pyproject)["project"]
    optional = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    path, *names = sys.argv[1:]
    sys.stdout.write("\n".join(dependencies(Path(path).read_text(encoding="utf-8"), names)) + "\n")
