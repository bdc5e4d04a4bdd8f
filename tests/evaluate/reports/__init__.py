"""Tests of `evaluate/reports`."""
