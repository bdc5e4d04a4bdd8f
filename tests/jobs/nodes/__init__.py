"""Tests of `jobs/loadtest`."""
