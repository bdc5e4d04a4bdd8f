"""Several hosts on one machine: network namespaces, joined by a bridge, whose links can be cut and slowed down.

Each host has the interfaces `lo` and `eth0`, and no route except to the other hosts and the bridge: it reaches neither
the internet nor services on this machine's loopback interface. What all hosts need, such as a store, listens on the
bridge's address. Hosts share the file system, the process table and the clock, so this is no isolation.

Addresses are of 198.18.0.0/15, which is reserved for tests of networks. Everything is removed at the end; what a killed
process has left is removed by the next one.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import psutil

from blip3o.errors import ServiceError

_OURS = re.compile(r"b3([hbv])(\d+)(?:x\d+)?")  # a namespace, a bridge, or the bridge's end of a link; process id
_END_S = 10.0


class Hosts:
    """The hosts as a context manager: made on entry, removed on exit with every process that still runs in them.

    A process has one at a time, since names are by its id.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Nothing is made yet. Hosts are called by `names`; `addresses` has their IPv4 addresses, by name."""
        self.names = tuple(names)
        self.address = ""  # of the bridge
        self.addresses: dict[str, str] = {}
        self._on_exit = ExitStack()

    def __enter__(self) -> Self:
        """Makes the hosts. Raises `ServiceError` if this machine or user cannot."""
        if problem := unsupported():
            raise ServiceError(problem)
        _remove_stale()
        with ExitStack() as on_failure:
            on_failure.callback(self._remove)
            self._make()
            on_failure.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kills what runs in the hosts, and removes them."""
        self._remove()

    def namespace(self, name: str) -> str:
        """The network namespace of a host, as `ip netns` calls it."""
        return f"b3h{os.getpid()}x{self.names.index(name)}"

    def command(self, name: str, command: Sequence[str]) -> list[str]:
        """A command line that runs `command` in a host."""
        return [_program("ip"), "netns", "exec", self.namespace(name), *command]

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes that run in a host."""
        listed = _run("ip", "netns", "pids", self.namespace(name)).split()
        return [psutil.Process(int(pid)) for pid in listed if psutil.pid_exists(int(pid))]

    def cut(self, name: str) -> None:
        """Cuts the link of a host: packets are lost in both directions, and neither side is told.

        The link leaves the bridge, but stays up: a host that lost its carrier would know it and fail at once.
        """
        _run("ip", "link", "set", self._link(name), "nomaster")

    def restore(self, name: str) -> None:
        """Joins the link of a host again."""
        _run("ip", "link", "set", self._link(name), "master", _bridge())

    def vanish(self, name: str) -> None:
        """A host loses power: it loses its link and then all of its processes, so that no other host gets a FIN."""
        self.cut(name)
        self.kill(name)

    def kill(self, name: str) -> None:
        """Kills all processes of a host, also those that appear meanwhile. Raises `ServiceError` if some survive."""
        deadline = time.monotonic() + _END_S
        while found := [process for process in self.processes(name) if _runs(process)]:
            if time.monotonic() > deadline:
                raise ServiceError(f"host {name}: processes {[process.pid for process in found]} survive SIGKILL")
            for process in found:
                _kill(process)
            psutil.wait_procs(found, timeout=0.2)

    def limit(self, name: str, megabits: float | None) -> None:
        """Limits what a host sends and what it receives, each to `megabits` per second; None: no limit."""
        inside = ("ip", "netns", "exec", self.namespace(name), _program("tc"))
        for command, device in ((inside, "eth0"), (("tc",), self._link(name))):
            if megabits is None:
                _run(*command, "qdisc", "del", "dev", device, "root")
            else:
                rate = ("rate", f"{megabits:g}mbit", "burst", "64kbit", "latency", "400ms")
                _run(*command, "qdisc", "replace", "dev", device, "root", "tbf", *rate)

    def _make(self) -> None:
        subnet = _free_subnet()
        self.address = f"{subnet}.1"
        _run("ip", "link", "add", _bridge(), "type", "bridge")
        _run("ip", "addr", "add", f"{self.address}/24", "dev", _bridge())
        _run("ip", "link", "set", _bridge(), "up")
        for number, name in enumerate(self.names):
            self.addresses[name] = f"{subnet}.{number + 11}"
            self._make_host(name)

    def _make_host(self, name: str) -> None:
        space, link = self.namespace(name), self._link(name)
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", space, "link", "set", device, "up")
        _run("ip", "link", "set", link, "master", _bridge(), "up")

    def _remove(self) -> None:
        spaces = _namespaces()
        for name in self.names:
            if self.namespace(name) in spaces:
                self.kill(name)
        _remove_of(os.getpid())
        self.addresses.clear()

    def _link(self, name: str) -> str:
        return f"b3v{os.getpid()}x{self.names.index(name)}"


def unsupported() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [program for program in ("ip", "tc") if _program(program) == program]:
        return f"network namespaces need the program '{missing[0]}': install iproute2"
    probe = f"b3h{os.getpid()}"
    try:
        _run("ip", "netns", "add", probe)
    except ServiceError as error:
        return f"this machine has no network namespaces: {error}"
    _run("ip", "netns", "del", probe)
    return None


def _bridge() -> str:
    return f"b3b{os.getpid()}"


def _free_subnet() -> str:
    """The first three numbers of a subnet of 198.18.0.0/15 of which no interface here has an address."""
    interfaces: list[dict[str, Any]] = json.loads(_run("ip", "-j", "addr"))
    used = {each["local"].rpartition(".")[0] for it in interfaces for each in it["addr_info"] if "local" in each}
    for number in range(os.getpid(), os.getpid() + 512):
        subnet = f"198.{18 + number // 256 % 2}.{number % 256}"
        if subnet not in used:
            return subnet
    raise ServiceError("198.18.0.0/15 has no free subnet: remove bridges that are not needed")


def _remove_stale() -> None:
    """Removes what processes that have ended left behind."""
    links = [it["ifname"] for it in json.loads(_run("ip", "-j", "link"))]
    found = [_OURS.fullmatch(name) for name in (*_namespaces(), *links)]
    for pid in {int(match[2]) for match in found if match}:
        if not psutil.pid_exists(pid):
            for name in _namespaces():
                if re.fullmatch(rf"b3h{pid}x\d+", name):
                    for left in _run("ip", "netns", "pids", name).split():
                        _kill(psutil.Process(int(left)))
            _remove_of(pid)


def _remove_of(pid: int) -> None:
    """Removes the namespaces and interfaces of a process. With one end of a link, the other goes as well."""
    for name in [it["ifname"] for it in json.loads(_run("ip", "-j", "link"))]:
        if re.fullmatch(rf"b3(b{pid}|v{pid}x\d+)", name):
            _run("ip", "link", "del", name)
    for name in _namespaces():
        if re.fullmatch(rf"b3h{pid}(x\d+)?", name):
            _run("ip", "netns", "del", name)


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines()]


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:  # it has ended
        pass


def _runs(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie that its parent has not reaped does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _program(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin") or name


def _run(program: str, *arguments: str) -> str:
    """What a command prints. Raises `ServiceError` with its complaint."""
    done = subprocess.run([_program(program), *arguments], capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise ServiceError(f"{program} {' '.join(arguments)}: {done.stderr.strip() or f'code {done.returncode}'}")
    return done.stdout
