"""Tests of `evaluate/suites/wise`."""
