"""Training on Ray Train: the fit, its workers, saving, restoring and reporting.

`jobs.train` and `jobs.ablate` are its callers.
"""
