"""Benchmarks: their items, their official file layouts and their scores.

`suite` is the interface, `registry` the table with one row per suite, and each suite is a file or a folder of its own.
Pure, except that items are read from a source that the user names. Called by `benchmark` through the registry.
"""
