"""The folder of a run, `<storage>/<run>`: its paths, recipe, metric rows, attempts, events, checkpoints, and result.

Everything that reads or writes below that folder asks this package for the path; nobody else joins one. It knows
neither data nor models. Nothing here loads PyTorch on import, since the stream's actors use it too.
"""
