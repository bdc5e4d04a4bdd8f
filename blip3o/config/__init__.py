"""Recipes as data: model sizes, training settings, presets, and reading them from YAML.

Configs are frozen, and unknown keys are errors. Imports neither torch nor Ray, so any machine can read, check, and
print a recipe.
"""
