"""Tests of `evaluate/heldout`."""
