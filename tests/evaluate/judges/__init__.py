"""Tests of `evaluate/judges`."""
