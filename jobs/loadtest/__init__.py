"""A load generator for a running server: `blip3o bench-serve`; `benchmarks.serve_load` uses it too. Imports no torch.

`options` says what is asked, `workload` draws requests, `client` sends one and times it, `drive` keeps up the load,
`scrape` reads the server's metrics, `summary` counts, and `report` and `plots` show the result.
"""
