"""Floating-point operations: exact formulas of a training step, and counts from running modules without data."""
