"""A benchmark as a job: plan, items, files, judging and scoring.

Needs no Ray; `jobs.evaluation` runs it on targets.
"""
