"""What a training run tells Prometheus: `exporter` sets what `serve/monitoring/training-*` show and watch."""
