"""Tracking in MLflow: one run, its store, records that wait after an outage, registered and served models."""
