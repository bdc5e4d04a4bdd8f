"""A cluster through Ray Serve's REST API: what it serves, and a new config for it."""

import re
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from blip3o.errors import ServiceError, one_line
from serve.deployments.configs import Config

T = TypeVar("T")

_POLL_S = 0.3
_PATIENCE_S = 30.0  # with a dashboard or a controller that restarts
_CLIENTS_FAULT = re.compile(r"status code 4\d\d")  # in messages of Ray's client
_ERRORS = (OSError, RuntimeError)  # the first are those of requests, which are no ConnectionErrors of Python
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


class ServeCluster:
    """The cluster whose dashboard is at `address`, as in `http://HEAD:8265`."""

    def __init__(self, address: str, *, patience_s: float = _PATIENCE_S) -> None:
        """Raises `ServiceError` if nothing answers there. Later, it may be silent for `patience_s` seconds."""
        from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

        self.address = address
        self._patience_s = patience_s
        try:
            self._client = ServeSubmissionClient(address)
        except _ERRORS as error:
            raise ServiceError(f"no Ray dashboard answers at {address}: {one_line(str(error))}") from error

    def details(self) -> dict[str, Any]:
        """What is served, as the REST API says it. Raises `ServiceError`."""
        found: dict[str, Any] = self._patiently("does not say what it serves", self._client.get_serve_details)
        return found

    def apply(self, config: Config) -> None:
        """Makes the cluster serve this config from now on; returns before it does. Raises `ServiceError`."""
        self._patiently("does not take the Serve config", lambda: self._client.deploy_applications(config))

    def _patiently(self, fault: str, call: Callable[[], T]) -> T:
        """What a call returns, which may be repeated: it either asks, or says what shall be."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return call()
            except _ERRORS as error:
                if time.monotonic() > deadline or _CLIENTS_FAULT.search(str(error)):
                    raise ServiceError(f"{self.address} {fault}: {one_line(str(error))}") from error
            time.sleep(_POLL_S)

    def wait(self, names: Collection[str], *, timeout_s: float) -> None:
        """Returns when these applications run as configured, with all replicas.

        Raises `ServiceError` if one of them fails, with Serve's message, or does not run within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.details()["applications"]
            states = {name: found.get(name, {}).get("status", "NOT_STARTED") for name in names}
            for name, state in states.items():
                if state in _FAILED:
                    raise ServiceError(f"application {name} does not run: {_message(found[name])}")
            if set(states.values()) == {"RUNNING"}:
                return
            if time.monotonic() > deadline:
                raise ServiceError(f"after {timeout_s:.0f} s, not all applications run: {states}")
            time.sleep(_POLL_S)

    def wait_for_none(self, names: Collection[str], deployment: str, *, timeout_s: float) -> None:
        """Returns when these applications have no replica of a deployment, also none that stops; or after `timeout_s`.

        Raises `ServiceError`.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = self.details()["applications"]
            left = [found.get(name, {}).get("deployments", {}).get(deployment, {}).get("replicas") for name in names]
            if not any(left):
                return
            time.sleep(_POLL_S)


def _message(application: dict[str, Any]) -> str:
    messages = [application.get("message", "")]
    messages += [deployment.get("message", "") for deployment in application.get("deployments", {}).values()]
    return one_line(" ".join(filter(None, messages)))[-600:]
