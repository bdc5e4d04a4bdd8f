"""Released checkpoints to bundles and back: names, sizes, tokenizers.

Called by `blip3o convert`. Refuses pickles, incomplete folders, and bytes that differ from what was written.
"""
