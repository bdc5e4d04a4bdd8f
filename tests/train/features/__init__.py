"""Tests of `train/features`."""
