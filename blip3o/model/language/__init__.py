"""The backbone's language model: one decoder for Qwen2.5-VL, Qwen3 and Llama. Only `Backbone` calls it."""
