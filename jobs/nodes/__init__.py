"""What the nodes of a cluster are and can do, before a run is started on them: `blip3o preflight --on-cluster`.

`probe` is what a node measures of itself, `survey` runs it on all nodes at once, `judge` turns the facts into findings,
and `report` prints them. Only `survey` needs Ray.
"""
