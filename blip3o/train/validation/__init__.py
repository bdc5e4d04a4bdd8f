"""The loss of a checkpoint on held-out data, outside of any engine."""
