"""Scores of a trained model on held-out data, and the report that shows them."""
