"""An autoscaling cluster whose nodes are processes of this machine: Ray's own autoscaler, with nothing to pay for.

`cluster.py` starts it from `launcher.yaml`, `status.py` follows what its autoscaler reports. Tests and
`blip3o demo-cluster` run jobs on it. Never `ray.cluster_utils.AutoscalingCluster`: that stops every Ray of the machine.
"""
