"""Scores of a trained model: on held-out data, and on public benchmarks.

`suites` and `metrics` are pure functions on records; `judges` asks other models; `benchmark` and `heldout` run an
evaluation on files; `reports` renders what they found. An evaluation loads bundles as a server does, knows nothing of
training, and refuses samples that were trained on. Called by `jobs` only: `jobs.evaluate`, the demo, ablations, and the
validation of training runs (`jobs.training`), which draws held-out samples with `heldout`.
"""
