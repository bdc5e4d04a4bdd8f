"""Tests of `data/shards`."""
