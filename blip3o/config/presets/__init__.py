"""Model sizes by name, as nested values that a recipe may override. Data, no logic.

`blip3o.config.load` is the one caller.
"""
