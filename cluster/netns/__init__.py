"""Hosts with addresses of their own on one Linux machine: network namespaces, for tests and measurements, as root."""
