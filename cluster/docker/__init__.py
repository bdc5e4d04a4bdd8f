"""The container image of a node: its Dockerfile, and what that runs while the image is built."""
