"""Tests of `train/checkpoint`."""
