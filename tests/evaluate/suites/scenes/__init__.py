"""Tests of `blip3o/evaluate/suites/scenes`."""
