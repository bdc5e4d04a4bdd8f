"""HTML reports in one file each, with their curves and image grids.

They show what they are given and compute nothing. `heldout`, `suites` and `run` are the three reports; `html`, `curves`
and `grid` are what they are built from; `published_scores` holds the published figures of other models. Called by
`heldout`, `benchmark` and the commands in `jobs` that report on runs.
"""
