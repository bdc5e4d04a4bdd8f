"""Weights in and out of files that others read: the sealed bundle from which a model is served.

Refuses pickle, incomplete folders, and bytes that differ from what was written.
"""
