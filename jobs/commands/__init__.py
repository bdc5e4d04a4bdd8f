"""Pages of the `blip3o` command that are no jobs: they look at data, models and runs, and use a model by hand.

Each offers typer functions, or an application of them, that `jobs.cli` names in its table. Heavy imports stay in them.
"""
