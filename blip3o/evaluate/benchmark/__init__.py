"""A benchmark run as five stages: prepare, generate, judge, score, report.

Owns the folder of an evaluation: each stage reads the files that the one before it left, so each can run on its own and
again. A stage is a file of the same name, `stages.run` runs a `plan.Plan`, `folder` lists every file, and a model under
evaluation is a `work.Target` (a bundle in this process or an HTTP server; `jobs.evaluation.actors` adds Ray). Called by
`jobs.evaluation`.
"""
