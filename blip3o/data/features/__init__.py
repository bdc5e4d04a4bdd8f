"""The feature cache: records of fixed size next to each shard, with provenance.

`blip3o.train.features` fills it; batches read it.
"""
