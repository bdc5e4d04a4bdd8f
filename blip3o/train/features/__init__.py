"""Runs the frozen encoder without the trainer: features for the cache and the stream, and their statistics."""
