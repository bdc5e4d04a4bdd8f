"""Text to token ids: templates, conversations, the tokenizer and its files.

Training and inference share it, so that the two cannot differ.
"""
