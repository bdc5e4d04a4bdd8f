"""Tests of `jobs/training`."""
