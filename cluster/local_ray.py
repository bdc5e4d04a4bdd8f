"""A Ray head on this machine, for `ray job submit`. A program that calls `ray.init("local")` does not need it.

It runs alongside any other Ray on the machine: it picks free ports, its session has its own folder, and it is stopped
by its own process tree, never by `ray stop`. The dashboard listens on 127.0.0.1; Ray itself always binds the
machine's own address. Usage statistics are off.
"""

import json
import logging
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from blip3o import settings
from blip3o.errors import ServiceError
from cluster.ports import LOOPBACK, free_ports
from cluster.process import ManagedProcess

logger = logging.getLogger(__name__)

# Options of `ray start` that would otherwise take a fixed port and collide with another Ray.
_PORT_OPTIONS = (
    "port",
    "node-manager-port",
    "object-manager-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "dashboard-port",
)
_PORT_VARIABLES = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
_STARTED = "Ray runtime started"  # printed by `ray start` once GCS and raylet have registered
_TOO_SLOW = "timed out during startup"  # said by `ray start`, whose limit of 30 s cannot be changed in Ray 2.60
_STARTS = 3
_MAX_TEMP_DIR = 40  # bytes; Ray puts Unix sockets below it, whose paths end at 107


class LocalRay:
    """The head as a context manager: started on entry, stopped on exit, and stopped too if this process is killed."""

    def __init__(
        self,
        *,
        num_cpus: int,
        dashboard: bool,
        temp_dir: Path | None = None,
        object_store_bytes: int = 500_000_000,
        token: str | None = None,
    ) -> None:
        """Nothing is started yet.

        `num_cpus` are logical CPUs for scheduling and may exceed the cores. With `dashboard`, jobs can be submitted.
        With a `token`, whoever connects needs it (`RAY_AUTH_MODE=token`, `RAY_AUTH_TOKEN`).
        `temp_dir` holds sessions and logs and is kept; without it a temporary folder is made, and removed at the end.
        Raises `ServiceError` if its path is longer than 40 bytes.
        """
        if temp_dir and len(bytes(temp_dir.absolute())) > _MAX_TEMP_DIR:
            raise ServiceError(
                f"temp_dir {temp_dir} is longer than {_MAX_TEMP_DIR} bytes: Ray's sockets need a shorter one"
            )
        self.num_cpus = num_cpus
        self.dashboard = dashboard
        self.object_store_bytes = object_store_bytes
        self.token = token
        self._wanted_temp_dir = temp_dir
        self._temp_dir: Path | None = None
        self._process: ManagedProcess | None = None
        self._ports: dict[str, int] = {}

    @property
    def temp_dir(self) -> Path:
        """Where the running head keeps its session. Raises `ServiceError` if it is not running."""
        if self._temp_dir is None:
            raise ServiceError("the local Ray head is not running: start it first")
        return self._temp_dir

    @property
    def address(self) -> str:
        """`HOST:PORT` of its GCS, for `ray.init(address=…)`. Raises `ServiceError` if it is not running."""
        import ray

        if not self._ports:
            raise ServiceError("the local Ray head is not running: start it first")
        return f"{ray.util.get_node_ip_address()}:{self._ports['port']}"

    @property
    def dashboard_url(self) -> str:
        """`http://127.0.0.1:PORT`, for `ray job submit --address`. Raises `ServiceError` if there is no dashboard."""
        if not self.dashboard or not self._ports:
            raise ServiceError("no Ray dashboard is running: start LocalRay with dashboard=True")
        return f"http://{LOOPBACK}:{self._ports['dashboard-port']}"

    def start(self, *, timeout_s: float = 90.0) -> None:
        """Starts the head and returns once it has registered and, with a dashboard, its job server answers.

        Raises `ServiceError` with the end of its log if it dies or does not answer within `timeout_s` seconds. On a
        busy machine a start may take longer than the half minute that Ray gives it; it is then tried again.
        """
        for attempt in range(1, _STARTS + 1):
            try:
                self._start(timeout_s)
            except ServiceError as error:
                if _TOO_SLOW not in str(error) or attempt == _STARTS:
                    raise
                logger.warning("the local Ray head took more than 30 s to start: trying again")
            else:
                return

    def _start(self, timeout_s: float) -> None:
        settings.configure_ray()
        self._temp_dir = self._make_temp_dir()
        self._process = ManagedProcess(name="the local Ray head", log=self._temp_dir / "head.log")
        numbers = free_ports(len(_PORT_OPTIONS) + len(_PORT_VARIABLES))
        self._ports = dict(zip(_PORT_OPTIONS, numbers, strict=False))
        variables = dict(zip(_PORT_VARIABLES, map(str, numbers[len(_PORT_OPTIONS) :]), strict=True))
        with ExitStack() as on_failure:
            on_failure.callback(self.stop)
            environment = variables | self._environment() | {"PATH": _path_with_this_python()}
            self._process.start(self._command(), environment)
            self._process.wait_until(self._answers, timeout_s=timeout_s)
            on_failure.pop_all()
        logger.info("local Ray head at %s, logs in %s", self.address, self._temp_dir)

    def stop(self) -> None:
        """Ends the head and every process below it. Does nothing if it is not running."""
        if self._process:
            self._process.stop()
        if self._temp_dir:
            self._end_strays(self._temp_dir)
        if self._temp_dir and self._wanted_temp_dir is None:
            shutil.rmtree(self._temp_dir)
        self._process = self._temp_dir = None
        self._ports = {}

    def _end_strays(self, temp_dir: Path) -> None:
        """Ends what the head has started and is no descendant of it. A lone head starts nothing of the kind."""

    def _environment(self) -> dict[str, str]:
        """Variables of the head beyond those of this process and its ports."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} if self.token else {}

    def _command(self) -> list[str]:
        ray = str(Path(sys.executable).with_name("ray"))
        options = {name: str(port) for name, port in self._ports.items()} | {
            "num-cpus": str(self.num_cpus),
            "object-store-memory": str(self.object_store_bytes),
            "include-dashboard": str(self.dashboard).lower(),
            "dashboard-host": LOOPBACK,
            "temp-dir": str(self.temp_dir),
            "min-worker-port": "0",  # 0: any free port, instead of 10002-19999
            "max-worker-port": "0",
        }
        return [ray, "start", "--head", "--block", "--disable-usage-stats", *(f"--{k}={v}" for k, v in options.items())]

    def _make_temp_dir(self) -> Path:
        if self._wanted_temp_dir is None:
            # A TMPDIR may be too long for Ray's sockets, as the one of macOS is.
            made = Path(tempfile.gettempdir()) / "ray-12345678"
            return Path(tempfile.mkdtemp(prefix="ray-", dir=None if len(bytes(made)) <= _MAX_TEMP_DIR else "/tmp"))
        self._wanted_temp_dir.mkdir(parents=True, exist_ok=True)
        return self._wanted_temp_dir.absolute()

    def _answers(self) -> bool:
        started = _STARTED in (self.temp_dir / "head.log").read_text(encoding="utf-8", errors="replace")
        return started and (not self.dashboard or _lists_jobs(self.dashboard_url, self.token))

    def __enter__(self) -> Self:
        """Starts the head."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the head."""
        self.stop()


def _path_with_this_python() -> str:
    """PATH on which `python` is this interpreter: Ray resolves the entrypoints of jobs on the PATH of its own start."""
    return f"{Path(sys.executable).parent}:{settings.get('PATH', '/usr/bin:/bin')}"


def _lists_jobs(dashboard_url: str, token: str | None) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with direct.open(urllib.request.Request(f"{dashboard_url}/api/jobs/", headers=headers), timeout=5) as answer:
            return isinstance(json.load(answer), list)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
