"""Inputs that broke the product, each through the real command or request."""
