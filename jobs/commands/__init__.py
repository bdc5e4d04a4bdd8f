"""Pages of the `blip3o` command that need no cluster."""
