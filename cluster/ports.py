"""Free TCP ports on the loopback interface, for services that cannot pick their own.

Ports are drawn between 20000 and 32767: above Ray's default worker ports and below the range from which Linux takes the
source ports of outgoing connections, so that no other process takes one between this check and the service's bind.
"""

import random
import socket
from contextlib import ExitStack

from blip3o.errors import ConfigError, ServiceError

LOOPBACK = "127.0.0.1"
_CANDIDATES = range(20000, 32768)


def free_ports(count: int, *, partner: int = 0) -> list[int]:
    """`count` different ports that nothing listens on, in no order; all are held until the last one is found.

    With `partner`, the port that many above each one is free as well (SeaweedFS puts gRPC 10000 above HTTP).
    Raises `ServiceError` if the range has fewer free ones.
    """
    candidates = range(_CANDIDATES.start, _CANDIDATES.stop - partner)
    with ExitStack() as held:
        ports: list[int] = []
        # The system's randomness, not a run's seed: two processes with one seed must not draw the same ports.
        for port in random.SystemRandom().sample(candidates, len(candidates)):
            if len(ports) == count:
                break
            if all(_bind(held.enter_context(socket.socket()), wanted) for wanted in {port, port + partner}):
                ports.append(port)
    if len(ports) < count:
        raise ServiceError(f"only {len(ports)} of {count} ports are free in {candidates}: stop services not needed now")
    return ports


def require_free(port: int) -> None:
    """Raises `ConfigError` unless it is the number of a port, and `ServiceError` if something listens on it."""
    if not 0 < port < 65536:
        raise ConfigError(f"port {port} is not between 1 and 65535: give another one with --port")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was released a moment ago is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ServiceError(f"port {port} of {LOOPBACK} is taken: give another one with --port") from error


def _bind(candidate: socket.socket, port: int) -> bool:
    try:
        candidate.bind((LOOPBACK, port))
    except OSError:
        return False
    return True
