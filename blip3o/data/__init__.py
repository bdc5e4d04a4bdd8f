"""From shards in a store to arrays: URIs, manifests, sample order, decoding, templates and the tokenizer.

Knows no model. Of Ray it needs nothing but in `stream`, and a damaged sample is counted, never skipped in silence.
"""
