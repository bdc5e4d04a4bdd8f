"""The folder of a run, `<storage>/<run>`: its paths, recipe, metric rows, attempts, events, checkpoints, and result.

All code that reads or writes below that folder gets the path from this package; no other code joins one. The package
knows neither data nor models. Importing it does not load PyTorch, since the stream's actors use it too.
"""
