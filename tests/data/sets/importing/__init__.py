"""Folders and tables as people bring them, room by room."""
