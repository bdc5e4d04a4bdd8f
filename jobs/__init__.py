"""What one submits: `blip3o VERB …`, which is `python -m jobs.VERB …` for every module here that is a verb.

Thin: everything that can be tested without Ray lives in `blip3o`. This is the one place that knows all packages.
`jobs.cli` is the table of verbs, `jobs.common` what they share. A verb's `command` is read by typer, and imports what
is heavy when it runs, so that `--help` answers at once; `main` runs it from a command line.
"""
