"""Benchmarks, one a module: their items, their official file layout, and their scores as pure functions of findings."""
