"""lmms-eval: a bundle as one of its models, a task of this project, and running it as a process.

lmms-eval finds `model` through an entry point; `jobs.lmms` writes the task and runs it. lmms-eval is not a dependency,
so nothing here imports `model`.
"""
