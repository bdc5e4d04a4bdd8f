"""A vision-language model behind an OpenAI-compatible endpoint as a judge: requests, replies, faults, options."""
