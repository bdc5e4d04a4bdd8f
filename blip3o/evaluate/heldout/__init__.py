"""A bundle scored on the held-out samples of a recipe.

`selection` decides which samples are used, `reader` reads them, `outputs` collects what the model makes of them,
`apart` compares them with training, and `evaluation` turns all of it into figures and files, with `reasons` for those
that are null. Called by `jobs.evaluate`, by the demo and ablations, and by the validation of training runs, which uses
`reader` and `outputs`.
"""
