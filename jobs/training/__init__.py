"""Training on Ray Train, from the command to the loop in four hops.

1. `jobs.train` parses the command line.
2. `run` is the driver: open inputs, check, start the workers, recover.
3. `worker` is a stage on each rank: build, restore, train, write the result.
4. `blip3o.train.loop` runs the optimizer steps.

The other files serve these four: checks before the first step, trainer and data stream, saving and restoring of
checkpoints, validation, progress.
"""
