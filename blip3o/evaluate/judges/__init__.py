"""Judges: models and programs that look at a generated image or a reply.

`runner` defines a judge at work and makes one from `--judge`; `client` asks a vision-language model behind an
OpenAI-compatible endpoint, with its `options`, and reads the `faults` and `replies` that come back. Knows no suite.
Called by the suites, by the judge stage, and (for its HTTP client) by `benchmark.http_target`.
"""
