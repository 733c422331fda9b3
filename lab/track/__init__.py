"""What MLflow keeps: one run, its store, what an outage kept back, registered and served models."""
