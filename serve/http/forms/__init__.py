"""The bodies of requests: their fields as pydantic models, the fields without effect as data, and their parsers."""
