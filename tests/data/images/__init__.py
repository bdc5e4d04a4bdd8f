"""Tests of `data/images`."""
