"""Tar shards: where members are, links between them, and the scan that indexing runs."""
