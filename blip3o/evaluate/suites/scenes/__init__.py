"""Scenes: GenEval's six tasks in a closed world of coloured shapes, with an exact judge. Called by the registry.

`heldout` scores the held-out scenes of a recipe with the same judge.
"""
