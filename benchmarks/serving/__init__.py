"""The parts of `benchmarks.serve_load`: other ways of batching behind the same HTTP API, and what is measured."""
