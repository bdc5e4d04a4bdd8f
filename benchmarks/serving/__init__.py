"""What a served model does while its replicas come, go and are replaced: `scaling` and `rollout`.

They use the server and the load of `benchmarks.serve_failures`.
"""
