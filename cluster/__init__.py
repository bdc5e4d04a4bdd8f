"""Machines: a laptop's local services (S3 store, Ray head); files of clusters, from one values file, and their checks.

Knows nothing of models, data or training; `jobs` hands these services to whatever needs them.
"""
