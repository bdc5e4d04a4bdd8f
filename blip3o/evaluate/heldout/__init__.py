"""A bundle scored on the held-out samples of a recipe.

`selection` decides which samples are used, `reader` reads them, `outputs` collects what the model makes of them, and
`evaluation` turns that into figures and files. Called by `jobs.evaluate`, by the demo and ablations, and by the
validation of training runs, which uses `reader` and `outputs`.
"""
