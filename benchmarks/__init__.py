"""Side-by-side measurements: `python -m benchmarks.NAME`. The last line printed is the result, one JSON object.

Each compares ours with another way to the same numbers, and refuses to report a ratio of things that differ. Results
are also kept, dated, under `benchmarks/results/`.
"""
