"""The routes of the HTTP API, one file a subject. Each is a function of a `Face` that adds routes to an app."""
