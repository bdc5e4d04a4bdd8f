"""Requests in, text and images out: engine and scheduler (no Ray, no HTTP), OpenAI's routes, deployments, web page.

Knows nothing of training. `serve.deployments` alone imports Ray.
"""
