"""Offline checks of container images: the versions that a tag states, and the Dockerfile."""

import re
import sys
from importlib.metadata import version

from blip3o.errors import ConfigError

_VERSIONS = re.compile(r"(?:/ray:|-ray)(?P<ray>\d+\.\d+\.\d+)-py(?P<major>3)(?P<minor>\d+)\b")
_INSTRUCTION = re.compile(r"^(?P<name>[A-Z]+)\s+(?P<rest>.*)$", re.DOTALL)


def check_image(where: str, image: str) -> None:
    """Raises `ConfigError` if an image's tag does not state the Ray and the Python that are installed here."""
    found = _VERSIONS.search(image)
    if not found:
        raise ConfigError(f"{where}: the tag of '{image}' does not state its versions: name it …-rayX.Y.Z-pyXY-…")
    check_ray(f"{where}: '{image}'", found["ray"])
    python = f"{found['major']}.{found['minor']}"
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != ours:
        raise ConfigError(f"{where}: '{image}' has Python {python}, and jobs come from {ours}: use one version")


def check_ray(where: str, found: str) -> None:
    """Raises `ConfigError` if a cluster's Ray is not the pinned one."""
    if found != (ours := version("ray")):
        raise ConfigError(f"{where} has Ray {found}, and this project runs on {ours}: use one version everywhere")


def validate_dockerfile(text: str) -> None:
    """Checks a Dockerfile. Raises `ConfigError` that names the line.

    Bases have a version, pip installs under the constraints and keeps no cache, apt leaves no lists and no recommended
    packages, nothing is fetched by ADD, and no stage ends as root.
    """
    user, arguments, stages = "", {}, {""}
    for line, name, rest in _instructions(text):
        if name == "ARG":
            key, _, value = rest.partition("=")
            arguments[key.strip()] = value.strip()
        elif name == "FROM":
            _check_user(line, user)
            user = ""
            _check_base(line, _expanded(rest, arguments), stages)
        elif name == "USER":
            user = rest.strip()
        elif name == "RUN":
            _check_run(line, rest)
        elif name == "ADD" or (name == "CMD" and not rest.startswith("[")):
            raise ConfigError(f"line {line}: {'COPY instead of ADD' if name == 'ADD' else 'CMD as a list'}")
    _check_user(len(text.splitlines()), user)
    if not user:
        raise ConfigError("the last stage names no USER: end with one that is not root")


def run_lines(text: str) -> list[str]:
    """The shell commands of a Dockerfile, in order."""
    return [rest for _, name, rest in _instructions(text) if name == "RUN"]


def _instructions(text: str) -> list[tuple[int, str, str]]:
    """(line number, name, rest) of each instruction; continued lines are joined, comments left out."""
    found, begun, first = [], "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        first = first or number
        begun += line.strip()
        if begun.endswith("\\"):
            begun = begun.removesuffix("\\")
            continue
        match = _INSTRUCTION.match(begun)
        if not match:
            raise ConfigError(f"line {first}: no instruction: {begun[:80]}")
        found.append((first, match["name"], match["rest"]))
        begun, first = "", 0
    return found


def _expanded(text: str, arguments: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), text)


def _check_user(line: int, user: str) -> None:
    if user.partition(":")[0] in ("root", "0"):
        raise ConfigError(f"line {line}: the stage ends as root: end with a USER that is not")


def _check_base(line: int, rest: str, stages: set[str]) -> None:
    image, *naming = rest.split()
    if image not in stages and (":" not in image or image.endswith(":latest")):
        raise ConfigError(f"line {line}: the base '{image}' has no version")
    if "/ray:" in image:
        check_image(f"line {line}", image)
    stages.update(naming[1:])


def _check_run(line: int, command: str) -> None:
    if "sudo " in command:
        raise ConfigError(f"line {line}: sudo: switch with USER")
    needed = []
    if "apt-get install" in command:
        needed += ["--no-install-recommends", "rm -rf /var/lib/apt/lists"]
    if "pip install" in command:
        needed += ["--no-cache-dir"] + ([] if "--no-deps" in command else ["-c constraints.txt"])
    for part in needed:
        if part not in command:
            raise ConfigError(f"line {line}: without {part}: {command[:60]}")
