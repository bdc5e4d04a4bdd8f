"""Tests of blip3o.evaluate.lmms."""
