"""Checkpoints: their content (`state`), their files (`files`), which ones count (`store`), where to resume (`resume`).

Workers save and restore through this package; the driver and the data stream ask it where a run resumes.
"""
