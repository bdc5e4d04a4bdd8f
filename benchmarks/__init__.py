"""Side-by-side measurements: `python -m benchmarks.NAME`. The last line printed is the result, one JSON object.

Each compares our way with another way to the same numbers, and reports no ratio if the numbers differ. Results are
also kept, dated, under `benchmarks/results/`.
"""
