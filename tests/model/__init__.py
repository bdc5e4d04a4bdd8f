"""Tests of the architecture against independent derivations that share no code with it."""
