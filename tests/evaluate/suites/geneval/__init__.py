"""Tests of `evaluate/suites/geneval`."""
