"""What a training run reports to Prometheus: `exporter` sets what `serve/monitoring/training-*` show and watch."""
