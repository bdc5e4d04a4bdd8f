"""Tests of keys as a subject: which stages read one, and what the reference says of it."""
