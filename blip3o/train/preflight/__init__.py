"""What can be known of a run before its first step: checks and the memory estimate. Needs no cluster."""
