"""Tests of the benchmarks' items, layouts and scores."""
