"""Parquet shards: which columns make a sample, row groups to samples, and a cache of decoded row groups."""
