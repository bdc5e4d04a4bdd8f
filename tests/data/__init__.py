"""Tests of the way from shards to arrays: storage, manifests, order, decoding, stream."""
