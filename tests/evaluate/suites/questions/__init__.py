"""Tests of `evaluate/suites/questions`."""
