"""Scores of a trained model on held-out data, and the report that shows them.

An evaluation reads bundles as a server does, knows nothing of training, and refuses samples that were trained on.
"""
