"""Tests of `train/deepspeed`."""
