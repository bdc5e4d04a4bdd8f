"""A run as data: sizes of the model, the recipe, presets, reading them from YAML. Frozen; unknown keys are errors.

Imports no torch and no Ray, so that any machine can read, check and print a recipe.
"""
