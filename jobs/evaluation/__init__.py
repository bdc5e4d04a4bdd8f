"""What the benchmarks of `blip3o evaluate --suite … --target …` need besides the library: Ray and the command line.

`actors` runs a bundle in a pool of Ray actors, `command` is the command line, and `demo_scores` combines evaluations
for the demo. The stages themselves are in `blip3o.evaluate.benchmark`. Called by `jobs.evaluate` and `jobs.demo`.
"""
