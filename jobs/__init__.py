"""Commands that one submits: `blip3o VERB …`, which is `python -m jobs.VERB …` for every module here that is a verb.

Thin: everything that can be tested without Ray lives in `blip3o`. Only this package knows all the others. `jobs.cli` is
the table of verbs, `jobs.common` what they share. typer reads a verb's `command`, which imports heavy modules only when
it runs, so that `--help` answers at once; `main` runs it from a command line.
"""
