"""Tensors in files: safetensors headers and streams, pickles, folders of weights, names without prefixes.

Knows no model and no run. Bundles, conversions, and training read and write through it.
"""
