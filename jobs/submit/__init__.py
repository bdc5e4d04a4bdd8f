"""`blip3o submit` and `blip3o jobs`: verbs as jobs of a cluster, over the HTTP address of its head.

Only `client` and what it is given to know Ray's job server; nothing here starts or joins Ray. Called by `jobs.cli` and
by `python -m jobs.submit`.
"""
