"""Preflight checks of a recipe, and the memory estimate. They need no cluster and no data."""
