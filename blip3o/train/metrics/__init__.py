"""Metrics of a run: the work in each micro-batch, and the trackers to which rows of metrics are written."""
