"""Tests of `jobs/evaluation`."""
