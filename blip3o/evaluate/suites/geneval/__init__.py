"""GenEval: its prompts, regenerated in code, and its rules."""
