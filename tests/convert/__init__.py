"""Tests of the bundle: whole, sealed, and read back as it was written."""
