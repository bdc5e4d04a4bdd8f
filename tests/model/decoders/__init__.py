"""Tests of `model/decoders`."""
