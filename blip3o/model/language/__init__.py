"""The backbone's language model: one decoder for the families Qwen2.5-VL, Qwen3 and Llama, called by `Backbone` only."""
