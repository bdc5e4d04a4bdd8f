"""The proof on one GPU: `python -m benchmarks.gpu {parity,step,resume,draw,encode}`; all of them by `make gpu`.

Each verb measures product code at the released sizes with random weights, so nothing is downloaded, and prints every
result next to what was predicted before the first run (`benchmarks/gpu/predictions.py`). `--device cpu --size nano`
runs the same code in seconds. `docs/gpu.md` says what the verbs measure and how to publish their results.
"""
