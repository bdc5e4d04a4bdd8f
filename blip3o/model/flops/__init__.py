"""Floating-point operations: exact formulas for a training step, and counts from running modules on the meta device."""
