"""Tests of `data/shards/tar`."""
