"""A Ray cluster whose nodes are hosts of their own (`cluster.netns.hosts`): one head, and workers that come and go."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from blip3o import settings
from blip3o.errors import ServiceError
from cluster.netns.hosts import Hosts
from cluster.process import ManagedProcess

_PORT = 6379
_STARTED = "Ray runtime started"  # printed by `ray start` once GCS and raylet have registered
_START_S = 120.0
_MAX_FOLDER = 30  # bytes; Ray puts Unix sockets below it, whose paths end at 107


class RayNodes:
    """The nodes as a context manager: all are stopped on exit."""

    def __init__(self, hosts: Hosts, *, head: str, folder: Path, environment: Mapping[str, str]) -> None:
        """Nothing is started yet. `folder` gets the nodes' logs and Ray's sessions; its path has at most 30 bytes.

        `environment` is added to that of every node, such as the settings of a store that the hosts can reach.
        """
        self.hosts, self.head = hosts, head
        self._folder, self._environment = folder, dict(environment)
        self._processes: dict[str, ManagedProcess] = {}

    @property
    def address(self) -> str:
        """`HOST:PORT` of the head's GCS, for programs that run in one of the hosts."""
        return f"{self.hosts.addresses[self.head]}:{_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program that runs in a host needs in its environment to join the cluster."""
        return {**self._environment, "RAY_ADDRESS": self.address}

    def start(self, name: str, *, num_cpus: float, labels: str = "") -> None:
        """Starts the node of a host and returns once it has registered; the head comes first.

        Raises `ServiceError` with the end of its log if it does not.
        """
        self.launch(name, num_cpus=num_cpus, labels=labels)
        self.wait_for(name)

    def launch(self, name: str, *, num_cpus: float, labels: str = "") -> None:
        """Starts the node of a host without waiting for it."""
        settings.configure_ray()
        log = self._folder / f"{name}.log"
        process = self._processes[name] = ManagedProcess(name=f"the Ray node of host {name}", log=log)
        environment = {**self._environment, "RAY_ADDRESS": ""}  # the options say which cluster it joins
        process.start(self.hosts.command(name, self._command(name, num_cpus, labels)), environment)

    def wait_for(self, name: str) -> None:
        """Returns once the node of a host has registered. Raises as `start` does."""
        process = self._processes[name]

        def answers() -> bool:
            return _STARTED in process.log.read_text(encoding="utf-8", errors="replace")

        process.wait_until(answers, timeout_s=_START_S)

    def ended(self, name: str) -> bool:
        """Whether the node of a host has ended by itself."""
        return not self.hosts.processes(name)

    def stop(self, name: str) -> None:
        """Stops the node of a host, if it runs."""
        if process := self._processes.pop(name, None):
            process.stop(grace_s=1.0)

    def __enter__(self) -> Self:
        """Refuses a folder that is too long for Ray's sockets."""
        if len(bytes(self._folder)) > _MAX_FOLDER:
            raise ServiceError(f"{self._folder} is longer than {_MAX_FOLDER} bytes: Ray's sockets need a shorter one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops all nodes: workers first, so that none looks for a head that has gone."""
        for name in [*(it for it in self._processes if it != self.head), self.head]:
            self.stop(name)

    def _command(self, name: str, num_cpus: float, labels: str) -> list[str]:
        options = {
            "node-ip-address": self.hosts.addresses[name],
            "num-cpus": f"{num_cpus:g}",
            "object-store-memory": "150000000",
            "min-worker-port": "0",  # 0: any free port
            "max-worker-port": "0",
            "temp-dir": str(self._folder / name),  # nodes that share one and start together take each other's sockets
        }
        if name == self.head:
            options |= {"port": str(_PORT), "include-dashboard": "true"}
        else:
            options |= {"address": self.address}
        if labels:
            options |= {"labels": labels}
        ray = str(Path(sys.executable).with_name("ray"))
        head = ["--head"] * (name == self.head)
        return [ray, "start", *head, "--block", "--disable-usage-stats", *(f"--{k}={v}" for k, v in options.items())]
