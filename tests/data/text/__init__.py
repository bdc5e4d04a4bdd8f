"""Tests of `data/text`."""
