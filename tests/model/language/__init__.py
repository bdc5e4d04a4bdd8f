"""Tests of `model/language`, against `transformers` and against definitions."""
