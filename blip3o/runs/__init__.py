"""The folder of a run: its paths, metric rows, attempts, events and quarantine.

Everything that reads or writes below `<storage>/<run>` asks this package for the path. It knows neither data nor
models.
"""
