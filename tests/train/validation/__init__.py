"""Tests of `train/validation`."""
