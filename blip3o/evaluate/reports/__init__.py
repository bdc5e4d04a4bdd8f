"""Reports in one file each: HTML pages with their curves and image grids, and the design study's table.

They show what they are given. `heldout`, `suites`, `run`, `comparison` (of several runs), `shards` and `ablation` are
the reports; `html`, `curves` and `grid` are what they are built from; `published_scores` holds the published figures of
other models. Called by `heldout`, `benchmark` and the commands in `jobs` that report.
"""
