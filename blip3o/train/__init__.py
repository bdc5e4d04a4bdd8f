"""Training one stage: objectives, schedule, engine, loop, checkpoints, and weights as they travel between stages.

Knows DeepSpeed but not Ray: `jobs` brings batches, devices and hooks.
"""
