"""The keys of a recipe as a subject: which stages read one, and the reference of all of them for people.

`blip3o.config.load` refuses keys that a stage does not read; `blip3o recipes explain` prints the reference.
"""
