"""Inference: one pipeline that generates images and chats, and the parsing of its arguments.

`blip3o.inference.pipeline` holds `Blip3oPipeline`, which the command line, evaluation and the server use. The other
modules import no torch: `messages` (chat messages in OpenAI's format), `data_urls`, `arguments` (prompts, seeds).
"""
