"""Trains one stage: objectives, schedule, engine, loop, checkpoints, and the weights passed between stages.

It uses DeepSpeed but not Ray: `jobs.training` provides batches, devices and the callbacks that need Ray.
"""
