"""Shards and their index: what a sample is, where its bytes are, and what became of every input.

Indexing writes the manifest and the ledger through this package; batches fetch samples through it.
"""
