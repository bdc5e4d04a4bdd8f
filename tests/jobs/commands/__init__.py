"""Tests of `jobs/commands`."""
