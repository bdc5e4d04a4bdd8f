"""Tests of the benchmarks: that they run, compare equals, and report in one form."""
