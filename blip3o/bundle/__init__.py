"""The bundle: the sealed folder from which a model is served.

`layout` (what is in the folder; needs no torch), `writing`, `reading`. Export and conversion write bundles; inference,
evaluation, and serving load them.
"""
