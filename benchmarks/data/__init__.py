"""Measurements of the data engine: `python -m benchmarks.data.NAME`, all of them by `make bench-data`.

Every way reads the same shards from the same store (SeaweedFS on this machine) and makes the same arrays of a sample
with the same function. Ways differ in how bytes come to that function and how its rows become batches. Each result is
printed as one JSON object, kept, dated, under `benchmarks/results/`, and written as a table into `docs/data.md`.
"""
