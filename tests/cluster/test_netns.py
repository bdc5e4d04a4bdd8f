"""Hosts in network namespaces: they reach each other, can be cut off, slowed down, and leave nothing behind."""

import subprocess
import sys
import time

import pytest

from cluster.netns import hosts
from cluster.netns.hosts import Hosts
from cluster.netns.proxy import RETRANSMIT_S, LongWay

pytestmark = pytest.mark.skipif(bool(hosts.unsupported()), reason=str(hosts.unsupported()))

# Answers each connection with the number of bytes that came before their end.
SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], 5000))
print("listens", flush=True)
while True:
    connection, _ = server.accept()
    count = 0
    while data := connection.recv(2**16):
        count += len(data)
    connection.sendall(str(count).encode())
    connection.close()
"""
CLIENT = """
import socket, sys, time
began = time.monotonic()
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[4]))
connection.sendall(bytes(int(sys.argv[3])))
connection.shutdown(socket.SHUT_WR)
print(connection.recv(100).decode(), time.monotonic() - began)
"""


@pytest.fixture
def pair():
    """Two hosts, of which `a` has a server."""
    with Hosts(("a", "b")) as made:
        command = made.command("a", [sys.executable, "-c", SERVER, made.addresses["a"]])
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout.readline() == "listens\n"
                yield made
            finally:
                server.kill()


def send(made, size, *, timeout_s=10.0, to=None):
    """Sends from host `b`; returns what the server counted and the seconds, or None if there is no way to it."""
    address, port = to or (made.addresses["a"], 5000)
    words = [sys.executable, "-c", CLIENT, address, str(port), str(size), str(timeout_s)]
    done = subprocess.run(made.command("b", words), capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()] or None


def test_hosts_reach_each_other_until_their_link_is_cut_and_after_it_is_back(pair):
    assert send(pair, 1000)[0] == 1000
    pair.cut("b")
    assert send(pair, 1000, timeout_s=0.5) is None
    pair.restore("b")
    assert send(pair, 1000)[0] == 1000


def test_a_limited_link_is_as_slow_as_it_says(pair):
    pair.limit("b", 8)
    count, seconds = send(pair, 1_000_000)
    assert count == 1_000_000
    assert seconds > 0.8  # a megabyte at a megabyte per second, less the burst
    pair.limit("b", None)
    assert send(pair, 1_000_000)[1] < seconds / 2


def test_a_long_way_delays_and_passes_everything_on(pair):
    with LongWay(pair.address, (pair.addresses["a"], 5000), delay_s=0.15) as way:
        count, seconds = send(pair, 1_000_000, to=(pair.address, way.port))
        assert count == 1_000_000 and seconds > 0.3
        way.delay_s, way.loss = 0.0, 1.0
        assert send(pair, 10, to=(pair.address, way.port))[1] > 2 * RETRANSMIT_S


def test_a_host_that_vanishes_says_nothing(pair):
    """Its peer still has a connection, on which nothing comes: neither an end nor a reset."""
    client = CLIENT.replace("connection.shutdown(socket.SHUT_WR)", "print('sent', flush=True)")
    words = [sys.executable, "-c", client, pair.addresses["a"], "5000", "10", "1"]
    with subprocess.Popen(pair.command("b", words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as peer:
        assert peer.stdout.readline() == "sent\n"
        began = time.monotonic()
        pair.vanish("a")
        assert not pair.processes("a")
        assert "TimeoutError" in peer.stderr.read()
        assert time.monotonic() - began > 0.5


def test_nothing_is_left_behind():
    """Not after an exception, and not by a process that was killed, once another one makes hosts."""
    with pytest.raises(RuntimeError), Hosts(("broken",)):
        raise RuntimeError
    code = (
        "import sys, time; from cluster.netns.hosts import Hosts\nwith Hosts(('left',)): print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
        killed.stdout.readline()
        left = subprocess.Popen(["ip", "netns", "exec", f"b3h{killed.pid}x0", "sleep", "600"])
        killed.kill()
    with Hosts(()):
        pass
    left.wait(10)
    names = subprocess.run(["sh", "-c", "ip netns list; ip -o link"], capture_output=True, text=True).stdout
    assert f"b3h{killed.pid}" not in names and f"b3v{killed.pid}" not in names and f"b3b{killed.pid}" not in names
