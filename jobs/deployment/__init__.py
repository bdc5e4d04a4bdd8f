"""What `blip3o deploy` does: a bundle onto a cluster that serves, without a failed request.

`rollout.py` is the order of steps, `cluster.py` talks to Serve's REST API, `checks.py` asks the server over HTTP.
"""
