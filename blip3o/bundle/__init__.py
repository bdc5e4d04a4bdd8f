"""The bundle: the sealed folder from which a model is served.

Export and conversion write bundles; inference, evaluation, and serving load them.
"""
