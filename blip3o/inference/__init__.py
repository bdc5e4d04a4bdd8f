"""Inference: one pipeline that generates images and chats, and the reading of what its callers pass.

`blip3o.inference.pipeline` holds `Blip3oPipeline`; the command line, the evaluation and the server use it. The other
modules need no torch: `messages` (OpenAI's chat messages), `data_urls`, and `arguments` (prompts, seeds, steps).
"""
