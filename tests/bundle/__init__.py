"""Tests of `bundle`."""
