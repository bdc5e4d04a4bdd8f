"""Kills a run at random moments, and compares its weights with those of the same run undisturbed.

    python -m benchmarks.recovery [--zero 1] [--kills 20]

Every kill is a SIGKILL of real processes: of one training worker, or, every fourth time, of the driver with all of its
workers, after which the run is submitted again. Moments are drawn after the first step of each attempt, up to two
commits and some seconds later; every third kill then waits for a checkpoint whose files are in the store but which Ray
has not committed. The report has the sha256 of both results, and the seconds from a kill to the next completed step,
split by phase. With `--freeze`, a worker is stopped (SIGSTOP) instead: its process lives and does nothing, which only
the watchdogs of the other workers detect; their reports are counted. Needs the extra `demo` (a real S3 server).

How long a recovery takes, phase by phase, is measured by `python -m benchmarks.recovery.seconds`.
"""
