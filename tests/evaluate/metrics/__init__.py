"""Tests of `evaluate/metrics`."""
