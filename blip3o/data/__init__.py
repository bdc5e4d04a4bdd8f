"""From shards in a store to arrays: URIs, manifests, sample order, decoding, templates and the tokenizer.

Knows no model. Only `stream` needs Ray. A damaged sample is counted, never skipped silently.
"""
