"""Inference: one pipeline that generates images and chats, and the parsing of its arguments.

`blip3o.inference.pipeline` holds `Blip3oPipeline`, which the command line, the evaluation and the server use. The other
modules need no torch: `messages` (chat messages in OpenAI's form), `data_urls`, `arguments` (prompts, seeds, steps).
"""
