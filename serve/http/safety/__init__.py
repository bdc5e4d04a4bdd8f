"""What protects the server and its users: API keys and their limits, limits of requests, the access log, filters."""
