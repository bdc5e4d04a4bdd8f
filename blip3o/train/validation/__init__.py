"""Validation: the loss of a checkpoint on held-out data, computed without a DeepSpeed engine."""
