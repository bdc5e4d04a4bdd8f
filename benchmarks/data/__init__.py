"""Measurements of the data engine: `python -m benchmarks.data.NAME`, all of them by `make bench-data`.

Every way reads the same shards from the same store (SeaweedFS on this machine) and turns a sample into the same arrays
with the same function. Ways differ in how that function gets its bytes and how its rows become batches. Each result is
printed as one JSON object, kept, dated, under `benchmarks/results/`, and written as a table into `docs/data.md`.
"""
