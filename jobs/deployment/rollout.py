"""The steps of a roll-out. Until the last one, a failure puts the old state back, and users have noticed nothing.

The new bundle starts next to the old one, gets a name of its own for the checks, then a share of the traffic, then all
of it. The old one goes when it has answered its last requests. All of that changes a routing table; no process of the
old bundle or the face restarts. In between, both bundles need their memory.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from blip3o.errors import ServiceError
from jobs.commands.interruption import deaf
from jobs.deployment.checks import Gate, smoke_test
from jobs.deployment.cluster import ServeCluster
from jobs.deployment.watch import Watch
from serve.config.options import ServeConfig
from serve.deployments.configs import (
    FACE,
    NEXT,
    Config,
    application_name,
    deployed_config,
    draining,
    face_application,
    first_config,
    model_application,
    options_of,
    placed_like,
    routed,
    routing_table,
    running,
    with_application,
    with_table,
    without_strays,
)
from serve.deployments.options import GENERATOR
from serve.routing import RoutingTable

_POLL_S = 1.0
_ON_THE_WAY_S = 1.0  # for requests that have chosen a bundle and have not reached it
_FACE_S = 60.0  # for all processes of the face to take back the traffic
_IDLE_S = 60.0  # until Serve has noticed that a deployment is idle


def resolved(cluster: ServeCluster, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a `ServeConfig`: those that are given, and the others as the model has them on the cluster."""
    current = deployed_config(cluster.details())
    name = given.get("name", ServeConfig.model_fields["name"].default)
    return {**(options_of(current, name) if current else {}), **given}


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A `share` of the traffic goes to the new bundle for `seconds`, before all of it does."""

    share: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A bundle that goes onto a cluster; `url` is the address of the face."""

    cluster: ServeCluster
    config: ServeConfig
    url: str
    gate: Gate
    canary: Canary
    start_timeout_s: float
    echo: Callable[[str], None]

    def run(self, *, host: str, port: int) -> None:
        """Does it. Raises `ServiceError` after it has put the old state back, if there was one.

        `host` and `port` are where a cluster that serves nothing yet shall listen.
        """
        current = deployed_config(self.cluster.details())
        if current is None:
            self._start(first_config(self.config, host=host, port=port))
            return
        new, old = application_name(self.config), running(routing_table(current), self.config.name)
        current = self._settled(current, old)
        self._take_back_traffic(routing_table(current))  # of a roll-out that was killed
        with self._restoring(current):
            face = face_application(self.config, routing_table(current))
            current = with_application(current, placed_like(face, FACE, current))
            if old is None:
                self._add(current, new)
            elif new == old:
                self._rescale(current)
            else:
                current = self._replace(current, old=old, new=new)
        if old not in (None, new):
            # Every face has the new table: no request chooses the old bundle, which leaves after its last replies.
            self._let_requests_arrive()
            self._drop(current, self._sharing(current, {new: 1.0}))
            self.echo(f"{self.config.name} serves {self.config.bundle}; the old bundle is leaving")

    def _settled(self, current: Config, old: str | None) -> Config:
        """The config without what a roll-out that was killed has left."""
        table = routing_table(current)
        if old is not None:
            current = with_table(current, routed(table, self.config.name, {old: 1.0}))
        return without_strays(current, self.config.name)

    def _start(self, first: Config) -> None:
        self.echo("the cluster serves nothing yet: starting the face and the bundle")
        self.cluster.apply(first)
        self.cluster.wait([each["name"] for each in first["applications"]], timeout_s=self.start_timeout_s)
        smoke_test(self.url, self.config.name)
        self.echo(f"{self.config.name} serves {self.config.bundle} at {self.url}")

    def _rescale(self, current: Config) -> None:
        """The same replicas in another number: Serve starts or drains some, and restarts none."""
        application = model_application(self.config)
        application = placed_like(application, application["name"], current)
        self.cluster.apply(with_application(current, application))
        self.cluster.wait([application["name"]], timeout_s=self.start_timeout_s)
        self.echo(f"{self.config.name} serves this bundle already: only its scaling is changed")

    def _add(self, current: Config, new: str) -> None:
        """One more model behind the face."""
        started = self._start_new(current, new, old=None)
        self._route(self._sharing(started, {new: 1.0}))
        self.echo(f"{self.config.name} serves {self.config.bundle}, next to the other models")

    def _replace(self, current: Config, *, old: str, new: str) -> Config:
        """Moves the traffic; returns the config, in which the old bundle still runs."""
        started = self._start_new(current, new, old=old)
        self.gate.check(self.url, self.config.name, self.config.name + NEXT, self.echo)
        self._try_out(started, old=old, new=new)
        self._route(self._sharing(started, {old: 0.0, new: 1.0}))
        return started

    def _start_new(self, current: Config, new: str, *, old: str | None) -> Config:
        """Starts the new bundle, reachable only under a name of its own, and runs the smoke test on it.

        It must do what the old one can, unless that does not run: then there is nothing to lose.
        """
        self.echo(f"starting {new}")
        started = with_application(current, placed_like(model_application(self.config), old, current))
        self.cluster.apply(started)
        self.cluster.wait([new], timeout_s=self.start_timeout_s)
        started = self._sharing(started, {} if old is None else {old: 1.0}, candidate=new)
        self._route(started)
        status = self.cluster.details()["applications"].get(old, {}).get("status")
        compared = self.config.name if status == "RUNNING" else ""
        smoke_test(self.url, self.config.name + NEXT, instead_of=compared)
        self.echo("the smoke test has passed")
        return started

    def _try_out(self, started: Config, *, old: str, new: str) -> None:
        """Gives the new bundle its share of the traffic. Raises `ServiceError` if it loses a replica under it."""
        if not (self.canary.share and self.canary.seconds):
            return
        share = self.canary.share
        self.echo(f"{share:.0%} of the requests go to the new bundle for {self.canary.seconds:g} s")
        self._route(self._sharing(started, {old: 1 - share, new: share}, candidate=new))
        watches: defaultdict[str, Watch] = defaultdict(Watch)
        deadline = time.monotonic() + self.canary.seconds
        while time.monotonic() < deadline:
            self._look(new, watches)
            time.sleep(min(_POLL_S, self.canary.seconds))
        smoke_test(self.url, self.config.name + NEXT)

    def _look(self, application: str, watches: Mapping[str, Watch]) -> None:
        """Raises `ServiceError` if a deployment of a bundle has lost a replica."""
        deployments = self.cluster.details()["applications"].get(application, {}).get("deployments", {})
        for name, deployment in deployments.items():
            living = [each["replica_id"] for each in deployment["replicas"] if each["state"] != "STOPPING"]
            if lost := watches[name].look(living, deployment["target_num_replicas"]):
                raise ServiceError(f"the new bundle has lost replicas under traffic: {', '.join(sorted(lost))}")

    def _sharing(self, config: Config, shares: Mapping[str, float], candidate: str = "") -> Config:
        """The config with these shares of the model's applications."""
        return with_table(config, routed(routing_table(config), self.config.name, shares, candidate))

    def _route(self, config: Config) -> None:
        """Returns when every process of the face follows the config's table."""
        self.cluster.apply(config)
        self.cluster.wait([FACE], timeout_s=self.start_timeout_s)

    def _drop(self, current: Config, target: Config) -> None:
        """Serves `target` instead of `current`; what it drops has no route, and answers its last requests before."""
        if leaving := draining(current, target):
            self.cluster.apply(leaving)
            kept = {each["name"] for each in target["applications"]}
            names = [each["name"] for each in leaving["applications"] if each["name"] not in kept]
            self.cluster.wait_for_none(names, GENERATOR, timeout_s=self.config.drain_timeout_s + _IDLE_S)
        self.cluster.apply(target)

    @contextmanager
    def _restoring(self, current: Config) -> Iterator[None]:
        """Puts the old state back unless the body ends well: also after a defect or a signal."""
        with ExitStack() as undo:
            undo.callback(self._restore, current)
            yield
            undo.pop_all()

    def _restore(self, current: Config) -> None:
        with deaf():
            before = current
            try:
                self._take_back_traffic(routing_table(current))
                before = deployed_config(self.cluster.details()) or current
            except ServiceError as error:  # what counts is that the old state comes back
                self.echo(f"requests to the new bundle may fail: {error}")
            self._drop(before, current)
        self.echo("rolled back: the cluster serves what it served before")

    def _take_back_traffic(self, old: RoutingTable) -> None:
        """Gives a model's old bundle all requests, and returns when none is on its way to another one."""
        found = deployed_config(self.cluster.details())
        back = _shares(old, self.config.name)
        if not back or found is None:
            return
        shares = _shares(routing_table(found), self.config.name)
        if not any(share for application, share in shares.items() if application not in back):
            return
        self.cluster.apply(self._sharing(found, dict.fromkeys(shares, 0.0) | back))
        self.cluster.wait([FACE], timeout_s=_FACE_S)
        self._let_requests_arrive()

    def _let_requests_arrive(self) -> None:
        """Waits for requests to a bundle that gets no new ones and is about to leave.

        The face chooses a bundle before it fetches pictures and asks a content filter, which may take all of a
        request's time.
        """
        http = self.config.http
        if not (http.fetch_hosts or http.content_filter):
            time.sleep(_ON_THE_WAY_S)
            return
        self.echo(f"waiting {self.config.request_timeout_s:g} s for requests on their way to the bundle that leaves")
        time.sleep(self.config.request_timeout_s)


def _shares(table: RoutingTable, name: str) -> dict[str, float]:
    """The share of each application of a model."""
    return {each.application: each.share for each in table.models.get(name, ())}
