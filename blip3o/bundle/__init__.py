"""The bundle: the sealed folder that a model is served from.

`layout` says what is in the folder (imports no torch), `writing` writes it, `reading` loads and checks it. Export and
conversion write bundles; inference, evaluation, and serving load them.
"""
