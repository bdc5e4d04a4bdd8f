"""Figures as pure functions on arrays and records: no files, no models, no suites.

Retrieval and diversity in the model's own feature space, distances between distributions of features, exact-match
scores of replies, and 95 % intervals. Called by `suites` and `heldout`.
"""
