"""Tests of blip3o.evaluate.benchmark."""
