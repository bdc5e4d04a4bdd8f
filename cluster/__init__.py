"""Machines: a laptop's local services (S3 store, Ray head), cluster manifests for AWS and Kubernetes, and their checks.

Knows nothing of models, data or training; `jobs` hands these services to whatever needs them.
"""
