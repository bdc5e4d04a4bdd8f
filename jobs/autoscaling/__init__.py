"""Jobs on an autoscaling cluster of this machine: what happens to its nodes, and to the jobs when nodes go.

`scenarios.py` has what happens, for tests and for `blip3o demo-cluster`; `world.py` and `command.py` are the demo,
`picture.py` its plot.
"""
