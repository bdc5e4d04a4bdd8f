"""Serving: engine and scheduler (no Ray, no HTTP), OpenAI's routes, Ray Serve deployments, and the web page.

Does not import training code. Only `serve.deployments` and `serve.app`, its entry point, import Ray.
"""
