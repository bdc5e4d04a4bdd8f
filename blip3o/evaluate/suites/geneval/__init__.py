"""GenEval: its prompts, generated again in code; its scoring rules; and its judges. Called by the registry.

`scenes` reuses the rules for a closed world.
"""
