"""The version, the commit, and the versions of torch and Ray, which are not imported for it."""

import json
import subprocess
from importlib import metadata
from pathlib import Path

from blip3o import __version__

PACKAGE = "blip3o"
SHOWN = ("torch", "ray")
_COMMIT = ("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _installed(package: str) -> str:
    """The version of a package, from its metadata."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def commit() -> str | None:
    """The commit of the source: that of this checkout, or the one that pip installed; None if unknown.

    A checkout with uncommitted changes is marked `-dirty`.
    """
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return _installed_commit()
    try:
        described = subprocess.run(_COMMIT, cwd=root, capture_output=True, encoding="utf-8")
    except FileNotFoundError:  # no git on this machine
        return None
    return described.stdout.strip() or None


def _installed_commit() -> str | None:
    """The commit that pip recorded (PEP 610) for a package from a repository."""
    try:
        url = metadata.distribution(PACKAGE).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return json.loads(url).get("vcs_info", {}).get("commit_id") if url else None


def describe() -> str:
    """One line for `blip3o --version` and for bug reports."""
    source = commit()
    ours = f"{PACKAGE} {__version__}" + (f" (commit {source})" if source else "")
    return ", ".join([ours, *(f"{name} {_installed(name)}" for name in SHOWN)])
