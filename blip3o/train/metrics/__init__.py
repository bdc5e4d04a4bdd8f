"""What a run reports: work per micro-batch, and the trackers that rows of metrics go to."""
