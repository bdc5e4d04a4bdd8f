"""The DeepSpeed engine of a stage, and whole tensors out of what it spreads over the ranks."""
