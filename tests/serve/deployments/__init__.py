"""Tests of the Ray Serve deployments."""
