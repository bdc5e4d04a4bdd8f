"""The frozen encoder by itself: features for the cache and the stream, and their statistics."""
