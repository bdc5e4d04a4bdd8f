"""Tests of training: the loop, losses against their definitions, schedules, and weights between stages."""
