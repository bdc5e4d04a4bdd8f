"""Checkpoints: what is in one, its files, and which of a run count.

Workers save and restore through it; the driver asks it where a run resumes.
"""
