"""A head with an autoscaler whose nodes are processes of this machine, started and stopped as one.

The provider is Ray's `FakeMultiNodeProvider`: the autoscaler (v2, that of the clouds) decides as it would there, and a
"node" is a raylet with its workers, which its monitor starts and ends. Everything belongs to one session folder, by
which its processes are found, whoever their parents are.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from blip3o.config.yaml_reader import load_yaml
from blip3o.errors import ServiceError
from cluster.local_ray import LocalRay
from cluster.notice import drain

LAUNCHER = Path(__file__).with_name("launcher.yaml")
_OBJECT_STORE_BYTES = 200_000_000  # of the head, where the driver puts its data


class FakeCluster(LocalRay):
    """The cluster as a context manager. Jobs join it through the environment of `client_environment`."""

    def __init__(self, *, idle_seconds: float = 6.0, temp_dir: Path | None = None) -> None:
        """Nothing is started yet. A node without work for `idle_seconds` is removed; `temp_dir` is as in `LocalRay`."""
        super().__init__(num_cpus=0, dashboard=True, temp_dir=temp_dir, object_store_bytes=_OBJECT_STORE_BYTES)
        launcher = load_yaml(LAUNCHER.read_bytes(), str(LAUNCHER))
        self._launcher: dict[str, Any] = {**launcher, "idle_timeout_minutes": idle_seconds / 60}

    @property
    def groups(self) -> list[str]:
        """Names of the worker groups, in the launcher file's order."""
        types = self._launcher["available_node_types"]
        return [name for name in types if name != self._launcher["head_node_type"]]

    @property
    def client_environment(self) -> dict[str, str]:
        """What a process needs in its environment to join."""
        return {"RAY_ADDRESS": self.address}

    def kill(self, node: str) -> None:
        """Ends a node without notice: SIGKILL for its raylet and workers at once, as when a machine loses power.

        `node` is a hexadecimal node id. Raises `ServiceError` if it has no raylet here.
        """
        raylet = self._raylet(node)
        kill_all([raylet, *raylet.children(recursive=True)])

    def drain(self, node: str, seconds: float) -> None:
        """Announces that a node leaves in `seconds`, as a spot node's notice does. Raises `ServiceError` if refused."""
        drain(self.address, node, seconds)

    def _end_strays(self, temp_dir: Path) -> None:
        """A node outlives a monitor that has died: then it is no descendant of the head's."""
        kill_all(_processes(temp_dir))

    def _raylet(self, node: str) -> psutil.Process:
        for process in _processes(self.temp_dir):
            if f"--node_id={node}" in process.info["cmdline"]:  # as the raylet alone says it
                return process
        raise ServiceError(f"no raylet of node {node} runs here")

    def _command(self) -> list[str]:
        file = self.temp_dir / "launcher.yaml"
        provider = {**self._launcher["provider"], "gcs_address": self.address}
        file.write_text(yaml.safe_dump({**self._launcher, "provider": provider}), encoding="utf-8")
        return [*super()._command(), f"--autoscaling-config={file}"]

    def _environment(self) -> dict[str, str]:
        head = str(self._launcher["provider"]["head_node_id"])
        return {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": head,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head,
        }


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL for each of them that still runs."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _processes(temp_dir: Path) -> list[psutil.Process]:
    """The living processes whose command lines name a session below `temp_dir`."""
    listed = psutil.process_iter(["cmdline"])
    return [each for each in listed if any(f"{temp_dir}/" in word for word in each.info["cmdline"] or ())]
