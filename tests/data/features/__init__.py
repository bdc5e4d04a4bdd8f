"""Tests of `data/features`."""
