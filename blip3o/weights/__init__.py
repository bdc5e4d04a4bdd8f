"""Tensors in files: safetensors headers and streams, pickles, folders of weights, prefixes of tensor names.

Knows neither models nor runs. Bundles, conversion, and training read and write tensors through it.
"""
