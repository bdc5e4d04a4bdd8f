"""Ports are free when they are handed out, and a service's partner port with them."""

import socket

import pytest

from blip3o.errors import ServiceError
from cluster import ports


def test_ports_are_different_and_can_be_bound():
    found = ports.free_ports(20)
    assert len(set(found)) == 20
    for port in found:
        with socket.socket() as listener:
            listener.bind((ports.LOOPBACK, port))


def test_a_port_is_refused_if_it_or_its_partner_is_taken(monkeypatch):
    monkeypatch.setattr(ports, "_CANDIDATES", range(23000, 23014))
    with socket.socket() as taken:
        taken.bind((ports.LOOPBACK, 23012))
        assert set(ports.free_ports(3, partner=10)) == {23000, 23001, 23003}
        with pytest.raises(ServiceError, match="only 3 of 4 ports are free"):
            ports.free_ports(4, partner=10)
