"""Encoded images to RGB pixels: container formats, orientation, transparency, decoding."""
