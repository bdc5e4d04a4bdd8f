"""Commands of `blip3o` that are not jobs: they look at data, models and runs, and use a model by hand.

Each module holds typer functions, or a typer application, named in the table of `jobs.cli`. Heavy modules are
imported when a command runs.
"""
