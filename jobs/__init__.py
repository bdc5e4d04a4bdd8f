"""What one submits: `python -m jobs.<verb> RECIPE [--set key=value …]`, and the `blip3o` command.

Thin: everything that can be tested without Ray lives in `blip3o`. This is the one place that knows all packages.
"""
