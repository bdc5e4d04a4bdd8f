"""Step batching against other ways to serve, and what Ray Serve and the HTTP API add to the latency.

    python -m benchmarks.serve_load [--bundle URI] [--rounds 5] [--parts throughput low_load cache autoscaling]

All ways run behind one HTTP API on this machine, with the same engine at the same width and the same requests, images
of 10, 20, 30 and 50 steps; `ways.py` has them. Before, they must give the same images. `ratio` is
the throughput of step batching over one request at a time, `ratio_batch` that over `@serve.batch`; medians of rounds.
`overhead_ms` is the median latency of one image at a time over HTTP less that of a call of the engine in this process.
How long a killed process is missed, `python -m benchmarks.serve_failures` measures.
"""
