"""Tests of recipes: what is accepted, what is rejected, and with which message."""
