"""Tests of the architecture, against derivations of its own that share no code with it."""
