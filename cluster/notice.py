"""A node that the cloud takes back is drained first: `python -m cluster.notice --address HEAD:6379`, on each worker.

AWS announces the end of a spot instance two minutes before, in the instance's metadata and nowhere else. This
asks for it every few seconds and then drains the Ray node, as `ray drain-node` does: a training run saves a checkpoint,
Serve moves its replicas. On Kubernetes the pod is told to leave, and its `preStop` hook drains with `--now`,
which returns when the node's work has ended.
"""

import argparse
import http.client
import json
import logging
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime

from blip3o import log, settings
from blip3o.errors import Blip3oError, ServiceError, one_line

logger = logging.getLogger("cluster.notice")  # also when run as __main__

TOKEN_PATH = "latest/api/token"
NOTICE_PATH = "latest/meta-data/spot/instance-action"
TOKEN_SECONDS = 21600
POLL_S = 5.0  # AWS's advice
_UNAUTHORIZED, _NOT_FOUND = 401, 404


class InstanceMetadata:
    """EC2's metadata service, version 2: each request carries a token, which expires."""

    def __init__(self, endpoint: str | None = None) -> None:
        """`endpoint` is its URL; if omitted, AWS_EC2_METADATA_SERVICE_ENDPOINT, or EC2's own."""
        from botocore.utils import METADATA_BASE_URL

        chosen = endpoint or settings.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA_BASE_URL
        self._endpoint = chosen.rstrip("/") + "/"
        self._token: str | None = None
        # The service is on this machine: never through a proxy.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def notice(self) -> datetime | None:
        """When the instance will be stopped or terminated; None if nothing has been announced.

        Raises `ServiceError` if the service cannot be reached or says something else.
        """
        try:
            answer = self._get(NOTICE_PATH)
        except urllib.error.HTTPError as error:
            if error.code == _NOT_FOUND:
                return None
            raise ServiceError(f"{self._endpoint}{NOTICE_PATH} answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(f"no answer from the instance's metadata at {self._endpoint}: {error}") from error
        try:
            return datetime.fromisoformat(json.loads(answer)["time"])
        except (ValueError, KeyError, TypeError) as error:
            raise ServiceError(f"{self._endpoint}{NOTICE_PATH} says {answer[:99]!r}, which names no time") from error

    def _get(self, path: str) -> bytes:
        """Asks with the token; once more with a new one if it has expired."""
        fresh = self._token is None
        self._token = self._token or self._new_token()
        try:
            return self._ask(path, {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code != _UNAUTHORIZED or fresh:
                raise
            self._token = None
            return self._get(path)

    def _new_token(self) -> str:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        return self._ask(TOKEN_PATH, lifetime, method="PUT").decode()

    def _ask(self, path: str, headers: dict[str, str], method: str = "GET") -> bytes:
        request = urllib.request.Request(self._endpoint + path, headers=headers, method=method)
        with self._opener.open(request, timeout=2) as answer:
            data: bytes = answer.read()
            return data


def wait_for_notice(metadata: InstanceMetadata, *, poll_s: float = POLL_S) -> float:
    """Returns the seconds that are left once the end of the instance is announced.

    A service that fails is asked again, with a warning at its first failure in a row.
    """
    failing = False
    while True:
        try:
            end = metadata.notice()
            failing = False
        except ServiceError as error:
            if not failing:
                logger.warning("%s; asking on", error)
            failing, end = True, None
        if end:
            return max((end - datetime.now(UTC)).total_seconds(), 0.0)
        time.sleep(poll_s)


def own_node(address: str) -> str:
    """The hexadecimal id of the living Ray node on this machine. Raises `ServiceError` if there is not exactly one."""
    import ray

    own = ray.util.get_node_ip_address()
    alive = {
        node.hex(): info.node_manager_address
        for node, info in ray._raylet.GcsClient(address=address).get_all_node_info(timeout=10).items()
        if info.state == 0  # GcsNodeInfo.ALIVE
    }
    here = [node for node, ip in alive.items() if ip == own]
    if len(here) != 1:
        raise ServiceError(f"{len(here)} nodes of the cluster at {address} are at {own}: name one with --node-id")
    return here[0]


def drain(address: str, node: str, seconds: float) -> None:
    """Announces to the cluster that a node leaves in `seconds`. Raises `ServiceError` if it refuses."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    deadline_ms = int((time.time() + seconds) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client = ray._raylet.GcsClient(address=address)
    accepted, why = client.drain_node(node, reason, "the cloud takes the node back", deadline_ms)
    if not accepted:
        raise ServiceError(f"the cluster at {address} does not drain node {node}: {why}")
    logger.info("node %s is drained: %.0f s are left", node, seconds)


def wait_until_idle(address: str, node: str, seconds: float) -> None:
    """Returns when a node has no work left, or has left the cluster, or the seconds are over."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if node not in {active.node_id for active in get_cluster_status(address).active_nodes}:
            return
        time.sleep(1)
    logger.warning("node %s still has work after %.0f s", node, seconds)


def main(arguments: list[str]) -> int:
    """Drains the node after AWS's notice, or now, and then waits for the end of its work; returns 1 if that fails."""
    parser = argparse.ArgumentParser(prog="python -m cluster.notice", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", default=settings.get("RAY_ADDRESS"), help="HOST:PORT of Ray's head (RAY_ADDRESS)")
    parser.add_argument("--node-id", help="the node to drain (the one on this machine)")
    parser.add_argument("--now", action="store_true", help="drain without waiting for a notice of AWS")
    parser.add_argument("--seconds", type=float, default=90, help="with --now: the seconds that are left")
    chosen = parser.parse_args(arguments)
    log.configure()
    if not chosen.address:
        parser.error("--address is missing, and RAY_ADDRESS is not set")
    from ray.exceptions import RpcError

    try:
        left = chosen.seconds if chosen.now else wait_for_notice(InstanceMetadata())
        node = chosen.node_id or own_node(chosen.address)
        drain(chosen.address, node, left)
        if chosen.now:
            wait_until_idle(chosen.address, node, left)
    except Blip3oError as error:
        logger.error("%s", error)
        return 1
    except RpcError as error:
        logger.error("no answer from Ray's head at %s: %s", chosen.address, one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
