"""The order of samples as a pure function, which samples take part, and how well an order shuffles."""
