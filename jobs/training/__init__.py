"""Training on Ray Train, from the command to the loop in four hops.

`jobs.train` reads the command line; `run` is the story of a run on the driver; `worker` that of a stage on each rank;
`blip3o.train.loop` takes the steps. The other files serve these: checks before the first step, trainer and stream,
saving and restoring of checkpoints, validations, progress.
"""
