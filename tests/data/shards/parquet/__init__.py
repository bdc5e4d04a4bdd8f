"""Tests of `data/shards/parquet`."""
