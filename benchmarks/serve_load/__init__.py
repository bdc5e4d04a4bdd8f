"""Step batching against other ways to serve, and what Ray Serve and the HTTP API add to the latency.

    python -m benchmarks.serve_load [--bundle URI] [--rounds 5] [--parts low_load cache engine throughput …]

All ways run behind one HTTP API on this machine, with the same engine at the same width and the same requests, images
of 10, 20, 30 and 50 steps (`ways.py`). They must give the same images. `ratio` is the throughput of step batching over
one request at a time, `ratio_batch` that over `@serve.batch`, both over HTTP, medians of rounds; `engine` has the first
without Serve and HTTP. `overhead` is the median latency of one image at a time over HTTP less that of a call of the
engine in this process. Parts that are measured one by one, on one commit and one day, make one result.
`python -m benchmarks.serve_failures` measures how long a killed process is missed.
"""
