"""Metrics as pure functions of records, features and pictures, with their intervals."""
