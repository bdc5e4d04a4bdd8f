"""The one place that reads the process environment.

Nothing else in the project touches `os.environ` (a test enforces it), so this page shows everything outside its recipe
that a run depends on. Child processes get their environment from `child_environment`.
"""

import hashlib
import math
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from blip3o.errors import ConfigError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def get(name: str, default: str | None = None) -> str | None:
    """The value of an environment variable, or `default`; an empty value counts as unset."""
    return os.environ.get(name) or default


def number(
    name: str, default: float, *, minimum: float = 0.0, above: float | None = None, maximum: float = math.inf
) -> float:
    """The value of an environment variable that is a number, or `default`.

    Raises `ConfigError` if it is not a finite decimal number, is below `minimum`, is not greater than `above`, or
    exceeds `maximum`.
    """
    text = (get(name) or "").strip()
    if not text:
        return default
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if math.isfinite(value) and minimum <= value <= maximum and (above is None or value > above):
        return value
    bound = f"of at least {minimum:g}" if above is None else f"above {above:g}"
    if maximum < math.inf:
        bound += f" and at most {maximum:g}"
    raise ConfigError(f"{name}={text} is no number {bound}: write digits without a unit, as in {name}={default:g}")


def starting_with(prefix: str) -> tuple[tuple[str, str], ...]:
    """Names and values of the environment variables whose names start with `prefix`, sorted by name."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith(prefix)))


def export(values: Mapping[str, str]) -> None:
    """Sets variables for this process and its children, except those that the user has already set."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def override(values: Mapping[str, str]) -> None:
    """Sets variables for this process and its children, replacing earlier values."""
    os.environ.update(values)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `extra` on top, for `subprocess.Popen(env=…)`."""
    return {**os.environ, **extra}


def cache_dir() -> Path:
    """Where downloads are kept between runs: `$BLIP3O_CACHE`, else `$XDG_CACHE_HOME/blip3o`, else `~/.cache/blip3o`.

    Raises `ConfigError` if that is in a home folder and the user has none, as in a container with only a user id.
    """
    chosen = get("BLIP3O_CACHE") or f"{get('XDG_CACHE_HOME', '~/.cache')}/blip3o"
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"there is no home folder for the cache {chosen}: set BLIP3O_CACHE to a full path") from error


# What nodes that serve are started with, on Kubernetes and AWS too: cluster.render writes it into their files.
RAY_SERVE = {
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.deployments.proxy:middlewares",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
}

# What a head is started with: how it notices that a node is lost. A check fails after 3 s and follows the last one by
# 1 s, so that a node is dead within 16 s. A shorter time would also end nodes whose link is gone for 10 s, which TCP
# takes up to 13 s to bridge, since it doubles the time between its attempts.
RAY_HEAD = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}


def configure_ray() -> None:
    """Sets the environment that each of our Ray processes needs. Call it before Ray is imported.

    Ray 2.60 turns on token authentication unless `RAY_AUTH_MODE` is set. A worker's report waits for the controller's
    poll (2 s by default), so we poll more often. A thread that is left behind when a command is stopped must not start
    a new Ray by its next call. glibc keeps the memory that torch's CPU tensors free: if it went back
    to the kernel, the kernel would zero it again for the next step. A lost node would be noticed after a minute.

    Serve takes three checks, 10 s apart, to notice that a proxy is dead, and kills one that takes 5 s to start, as on
    a busy laptop; one that has no routes yet answers 404, and it has no limits of its own against hostile clients. Its
    replicas report their load every 10 s, which is how late it would add one.
    """
    export(
        {
            "MALLOC_MMAP_THRESHOLD_": str(2**30),
            "MALLOC_TRIM_THRESHOLD_": str(2**31),
            "RAY_AUTH_MODE": "disabled",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DATA_LOG_LEVEL": "WARNING",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_ENABLE_AUTO_CONNECT": "0",
            **RAY_HEAD,
            **RAY_SERVE,
        }
    )
    sys.executable = plain_interpreter(sys.executable, sys.prefix)


def plain_interpreter(executable: str, prefix: str) -> str:
    """A path to the interpreter that a shell takes as one word: its own, or one through a link to its environment.

    Ray 2.60 starts a worker that has a runtime environment (Serve's are such) with `bash -c "exec PYTHON …"` and does
    not quote PYTHON, so in a folder with a space the worker never comes up, without a word. The link stays in the
    system's temporary folder. Raises `ConfigError` if something else has its name.
    """
    inside = Path(executable).is_relative_to(prefix)
    link = Path(tempfile.gettempdir(), f"blip3o-python-{hashlib.sha256(os.fsencode(prefix)).hexdigest()[:12]}")
    if shlex.quote(executable) == executable or not inside or shlex.quote(str(link)) != str(link):
        return executable
    with suppress(FileExistsError):
        link.symlink_to(prefix, target_is_directory=True)
    if not link.is_symlink() or os.readlink(link) != prefix or link.lstat().st_uid != os.getuid():
        raise ConfigError(f"{link} is not this user's link to {prefix}: remove it")
    return str(link / Path(executable).relative_to(prefix))
