"""WISE: its items, and the grades that a judge gives."""
